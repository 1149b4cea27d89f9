"""Loading: from a model's name or bundle to a scorer."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, get_args

from .audio.guards import BadAudioPolicy
from .backends import candidates, open_backend
from .backends import precision as arithmetic
from .bundle.bundle import Bundle
from .bundle.embedded import find_bundle
from .bundle.variants import caution, check, fastest, reference
from .errors import ProviderError
from .host.cache import Cache, cache_directory
from .host.cpu import CpuFeatures
from .host.threads import usable_cores

if TYPE_CHECKING:
    from .scorer import Scorer

__all__ = ["load"]

_LOG = logging.getLogger(__name__)


def load(
    bundle: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    on_bad_audio: BadAudioPolicy = "warn",
    remove_silence: bool = False,
    cache: bool = True,
) -> Scorer:
    """Loads a model into a scorer.

    Args:
        bundle: Name of a model that comes with mosrt, "nano" if left out; or the path of a bundle
            directory or of a zip of one. A name goes before a path: write "./nano", or give a
            Path, for a bundle in the working directory that is called like an embedded model.
        variant: Precision variant. By default the reference, fp32, whose scores are the same on
            every machine but for rounding. "auto" is the fastest for this machine, of those that
            the bundle has: its scores drift by as much as the manifest says, and on machines that
            differ in what they choose they differ by that; `Score.variant` tells which it was.
        provider: "cpu", "cuda", "coreml", "dml"; "tensorrt", which runs engines that `mosrt
            build` has made on this machine; "tensorrt-ep", ONNX Runtime's own use of TensorRT,
            which builds its engines at the first run; "openvino" (an extra; bfloat16 where the
            CPU is fast at it), "openvino-bf16", "openvino-fp32"; or "auto" for the first that
            works of "cuda" and "cpu".
        threads: Threads that one call may use, front end and model alike; by default all cores
            this process may use (affinity mask and container quota respected).
        on_bad_audio: What to do about a recording that trips a guard. "warn" logs a warning and
            scores it all the same, or gives nan where no score is possible; "nan" gives nan;
            "error" raises AudioError. The flags in the score tell which guards it tripped.
        remove_silence: Cut long quiet runs before scoring, as the reference implementation of
            UTMOSv2 does by default.
        cache: Keep what engines make of large graphs on disk (see
            `mosrt.host.cache.cache_directory`), so that the next start is quicker.

    Raises:
        BundleError: The bundle cannot be used.
        ProviderError: The provider is not available, or does not run the variant.
        ValueError: An option has a value that it does not know.
    """
    opened = Bundle.open(find_bundle(bundle))
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if on_bad_audio not in get_args(BadAudioPolicy):
        raise ValueError(f"on_bad_audio must be 'warn', 'nan' or 'error', not {on_bad_audio!r}")
    kept = Cache(cache_directory()) if cache else None
    common: dict[str, Any] = {
        "threads": threads or usable_cores(),
        "on_bad_audio": on_bad_audio,
        "remove_silence": remove_silence,
    }
    refused: ProviderError | None = None
    for place in candidates(provider):
        if refused is not None:
            _LOG.warning("%s; trying %s", refused, place)
        try:
            return _load_on(opened, place, variant, kept, common)
        except ProviderError as exc:
            refused = exc
    raise refused or ProviderError("onnxruntime has no provider here; install it again")


def _load_on(
    opened: Bundle, provider: str, variant: str | None, cache: Cache | None, common: dict[str, Any]
) -> Scorer:
    """A scorer on one provider; ProviderError if that is not possible."""
    name = _variant(opened, provider, variant)
    chosen = opened.variant(name)
    manifest = opened.manifest
    provider = arithmetic.exact_provider(manifest.front_end, provider)
    if (warning := arithmetic.caution(provider)) is not None:
        _LOG.warning("%s", warning)
    engine: dict[str, Any] = {
        "provider": provider,
        "threads": common["threads"],
        "cache": cache,
    }
    with opened.extracted(chosen) as directory:
        if manifest.uncertainty is not None:
            from .uncertainty.graphs import load_stages  # noqa: PLC0415 - other models do without
            from .uncertainty.scorer import UncertaintyScorer  # noqa: PLC0415 - as above

            stages = load_stages(manifest, chosen, directory, **engine)
            return UncertaintyScorer(manifest, stages, variant=name, **common)
        tensors: dict[str, Any] = {"inputs": manifest.inputs, "outputs": manifest.outputs}
        with ThreadPoolExecutor(1) as beside:
            opening = beside.submit(open_backend, directory, chosen, **tensors, **engine)
            # ONNX Runtime leaves the interpreter to others as it loads a graph, which takes longer
            # than importing and preparing all that scores.
            from .mos.fusion import FusionFrontEnd  # noqa: PLC0415
            from .mos.scorer import FusionScorer  # noqa: PLC0415

            front_end = FusionFrontEnd(manifest)
            backend = opening.result()
    return FusionScorer(manifest, backend, front_end=front_end, variant=name, **common)


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
