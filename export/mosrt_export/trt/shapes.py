"""Derives the range of input shapes of an engine from the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mosrt.backends.engine_file import Profile
from mosrt.bundle.manifest import Manifest, Member, TensorSpec
from mosrt.bundle.uncertainty_spec import STAGES
from mosrt.uncertainty.wav2vec import BLOCK_ROWS
from mosrt_export.errors import EngineError

__all__ = ["Range", "member_tensors", "profile_of", "size_ranges"]

Range = tuple[int, int, int]
"""Smallest, usual and largest size of a dimension."""

_USUAL_S: Final = 5.0


def member_tensors(
    manifest: Manifest, member: Member
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs and outputs of one network."""
    if manifest.uncertainty is None:
        return manifest.inputs, manifest.outputs
    tensors = {tensor.name: tensor for tensor in (*manifest.inputs, *manifest.outputs)}
    taken, given = STAGES[manifest.family][member.name]
    return tuple(tensors[name] for name in taken), tuple(tensors[name] for name in given)


def size_ranges(
    manifest: Manifest, *, batch: Range | None = None, max_seconds: float | None = None
) -> dict[str, Range]:
    """Returns the ranges of dynamic dimensions by name.

    Args:
        manifest: Manifest of the bundle.
        batch: Views per run, for MOS models; by default 1 to 4, usually 4.
        max_seconds: Longest chunk in seconds, for uncertainty models; by default the longest of the
            runtime.

    Raises:
        EngineError: An option does not suit the model.
    """
    spec = manifest.uncertainty
    if spec is None:
        if max_seconds is not None:
            raise EngineError(
                f"{manifest.name} scores views of one length; leave --max-seconds out"
            )
        smallest, usual, largest = batch or (1, 4, 4)
        if not 1 <= smallest <= usual <= largest:
            raise EngineError(
                f"batch sizes {smallest}, {usual}, {largest} do not ascend; --min-batch, "
                "--opt-batch and --max-batch must"
            )
        length = 0 if manifest.ssl is None else manifest.ssl.crop_samples
        return {"batch": (smallest, usual, largest), "samples": (length, length, length)}
    if batch is not None:
        raise EngineError(
            f"{manifest.name} processes one recording at a time; leave the batch options out"
        )
    rate_hz, longest = manifest.sample_rate_hz, spec.window_samples
    if max_seconds is not None:
        longest = min(longest, round(max_seconds * rate_hz))
    if longest < spec.min_samples:
        raise EngineError(
            f"{manifest.name} needs at least {spec.min_samples / rate_hz:g} s; raise --max-seconds"
        )
    usual_samples = max(spec.min_samples, min(longest, round(_USUAL_S * rate_hz)))
    samples = (spec.min_samples, usual_samples, longest)
    small, usual, large = map(spec.n_frames, samples)
    passes = 1 if spec.dropout is None else spec.dropout.passes_per_run
    return {
        "batch": (1, 1, 1),
        "samples": samples,
        "frames": (small, usual, large),
        "queries": (1, BLOCK_ROWS, BLOCK_ROWS),
        "passes": (1, passes, passes),
    }


def profile_of(inputs: Sequence[TensorSpec], ranges: Mapping[str, Range]) -> Profile:
    """Returns the smallest, usual and largest shape of each input.

    Raises:
        EngineError: A dimension has a name that is not among `ranges`.
    """
    profile = {}
    for tensor in inputs:
        try:
            sizes = [
                ranges[size] if isinstance(size, str) else (size,) * 3 for size in tensor.shape
            ]
        except KeyError as exc:
            raise EngineError(
                f"input {tensor.name!r} has a dimension {exc} whose range is unknown; export the "
                "bundle again with this version"
            ) from None
        smallest, usual, largest = zip(*sizes, strict=True)
        profile[tensor.name] = smallest, usual, largest
    return profile
