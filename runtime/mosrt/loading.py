"""Opens a model as a scorer, by name or from a bundle on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, get_args

from .audio.guards import BadAudioPolicy
from .backends import KEEPING, candidates, open_backend, precision
from .bundle.bundle import Bundle
from .bundle.embedded import embedded_models, find_bundle
from .bundle.variants import caution, check, fastest, reference
from .errors import BundleError, ProviderError
from .host.cache import Cache, cache_directory
from .host.cpu import MAX_THREADS, CpuFeatures, usable_cores
from .host.files import sha256_of

if TYPE_CHECKING:
    from .bundle.manifest import Manifest
    from .scorer import Scorer

__all__ = ["available_models", "load"]

_MAX_BATCH: Final = 4096
_LOG = logging.getLogger(__name__)


def available_models() -> tuple[str, ...]:
    """Names of the models that come with mosrt, the default first."""
    return tuple(embedded_models())


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    on_bad_audio: BadAudioPolicy = "warn",
    remove_silence: bool = False,
    any_format: bool = False,
    cache: bool = True,
) -> Scorer:
    """Opens a model as a scorer.

    Args:
        model: Name of a model that comes with mosrt (`available_models`), "distillmos" if left
            out; or the path of a bundle, a directory or a zip of one. A name goes before a path:
            write "./nano", or give a Path, for a bundle that is called like an embedded model.
        variant: Precision variant. The default is the reference, fp32, whose scores are the same
            on every machine but for rounding. "auto" is the fastest one of the bundle on this
            machine: its scores differ from the reference's by about the drift that the manifest
            states, and machines may choose differently; `Score.variant` tells which one it was.
        provider: "cpu", "cuda", "coreml", "dml"; "tensorrt", which runs engines that `mosrt
            build` has made on this machine; "tensorrt-ep", ONNX Runtime's own use of TensorRT,
            which builds its engines at the first run; "openvino" (an extra; bfloat16 where the
            CPU is fast at it), "openvino-bf16", "openvino-fp32"; or "auto" for the first that
            works of "cuda" and "cpu".
        threads: Threads that one call may use, front end and model alike; at most 1024; by
            default all cores that this process may use (affinity mask and container quota).
        batch_size: Recordings that `score_many` and `iter_scores` decode before they run the
            model, at most 4096; by default as many as the provider runs views at once, so that a
            GPU's batches are full even if each recording has few views. Scores do not depend on it.
        on_bad_audio: What to do about a recording that trips a guard. "warn" logs a warning and
            scores it all the same, or gives nan where no score is possible; "nan" gives nan;
            "error" raises AudioError. The flags in the score name the guards.
        remove_silence: Cut long quiet runs before scoring, as the reference implementation of
            UTMOSv2 does by default.
        any_format: Also read other formats that libsndfile knows than those of
            `Scorer.score_file`. It may misread files that are not audio.
        cache: Keep optimised graphs of large models on disk, in MOSRT_CACHE or the platform's usual
            place, so that the next start is quicker.

    Raises:
        BundleError: The bundle cannot be used.
        ProviderError: The provider is not available, or does not run the variant.
        ValueError: An option has a value that it does not know.
    """
    opened = Bundle.open(find_bundle(model))
    for name, value, most in (
        ("threads", threads, MAX_THREADS), ("batch_size", batch_size, _MAX_BATCH)
    ):  # fmt: skip
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{name} must be from 1 to {most}, not {value}")
    if on_bad_audio not in get_args(BadAudioPolicy):
        raise ValueError(f"on_bad_audio must be 'warn', 'nan' or 'error', not {on_bad_audio!r}")
    options: dict[str, Any] = {
        "threads": threads or usable_cores(),
        "batch_size": batch_size,
        "on_bad_audio": on_bad_audio,
        "remove_silence": remove_silence,
        "any_format": any_format,
    }
    refused: ProviderError | None = None
    for candidate in candidates(provider):
        if refused is not None:
            _LOG.warning("%s; trying %s", refused, candidate)
        try:
            return _load_on(opened, candidate, variant, cache, options)
        except ProviderError as exc:
            refused = exc
    raise refused or ProviderError("onnxruntime has no provider here; install it again")


def _load_on(
    opened: Bundle, provider: str, variant: str | None, cache: bool, options: dict[str, Any]
) -> Scorer:
    """A scorer on one provider; ProviderError if that is not possible."""
    name = _variant(opened, provider, variant)
    chosen = opened.variant(name)
    manifest = opened.manifest
    embedded = opened.path in embedded_models().values()
    reopen = partial(
        _reopen,
        opened.path.name if embedded else opened.path.absolute(),
        **options,
        variant=variant and name,
        provider=provider,
        cache=cache,
    )
    common: dict[str, Any] = {**options, "variant": name, "reopen": reopen, "digest": opened.sha256}
    provider = precision.exact_provider(manifest.front_end, provider)
    if (warning := precision.warning(provider)) is not None:
        _LOG.warning("%s", warning)
    kept = Cache(where) if cache and (where := cache_directory()) is not None else None
    engine: dict[str, Any] = {"provider": provider, "threads": options["threads"], "cache": kept}
    with opened.extracted(chosen, check=False) as directory, ThreadPoolExecutor(2) as beside:
        # Hashing takes a second per gigabyte, unless the cache knows that a file is unchanged.
        intact = beside.submit(
            opened.check_files, chosen, sha256_of if kept is None else kept.sha256_of
        )
        if provider in KEEPING:
            intact.result()
        if manifest.uncertainty is not None:
            from .uncertainty.family import load_stages  # noqa: PLC0415 - other models do without
            from .uncertainty.scorer import UncertaintyScorer  # noqa: PLC0415 - as above

            with _unless_damaged(intact):
                stages = load_stages(manifest, chosen, directory, **engine)
            return UncertaintyScorer(manifest, stages, **common)
        tensors: dict[str, Any] = {"inputs": manifest.inputs, "outputs": manifest.outputs}
        with _unless_damaged(intact):
            opening = beside.submit(open_backend, directory, chosen, **tensors, **engine)
            # ONNX Runtime releases the interpreter lock while it loads a graph, which takes longer
            # than these imports.
            from .mos.scorer import FusionFrontEnd, FusionScorer  # noqa: PLC0415

            front_end = FusionFrontEnd(manifest)
            backend = opening.result()
    return FusionScorer(manifest, backend, front_end=front_end, **common)


@contextmanager
def _unless_damaged(intact: Future[None]) -> Iterator[None]:
    """Raises that a file is damaged, if it is, rather than what came of it."""
    try:
        yield
    except Exception:
        intact.result()
        raise
    intact.result()


def _reopen(model: str | os.PathLike[str], *, manifest: Manifest, **options: Any) -> Scorer:
    """Opens a pickled scorer's bundle, whose manifest, and so every SHA-256, must be as it was."""
    path = find_bundle(model)
    if Bundle.open(path).manifest != manifest:
        raise BundleError(
            f"{path}: the bundle is not the one that the scorer was pickled with; "
            "load it again, or put the old bundle back"
        )
    return load(model, **options)


def _variant(opened: Bundle, provider: str, asked: str | None) -> str:
    """The name of the variant to run on a provider."""
    variants = opened.manifest.variants
    if asked is None:
        return reference(variants, provider).variant
    cpu = CpuFeatures.read()
    if asked == "auto":
        choice = fastest(variants, provider, cpu)
        _LOG.info("variant %s: %s", choice.variant, choice.reason)
        return choice.variant
    found = opened.variant(asked)  # an unknown name is the bundle's error, not the provider's
    check(asked, provider)
    if (warning := caution(asked, found, cpu)) is not None:
        _LOG.warning("%s", warning)
    return asked
