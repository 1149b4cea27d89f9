"""Adds FP16 and INT8 variants to an FP32 bundle, from a directory of speech."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Variant
from mosrt.bundle.writer import updated_bundle, write_card, write_manifest
from mosrt.errors import BundleError, MosrtError
from mosrt.host.cpu import CpuFeatures

from .clips import Choice, Progress, choose, list_sha256, no_progress
from .passes.corrections import with_offsets
from .ranges.collector import default_cache
from .ranges.ranges import METHODS
from .report import Result, VariantResult, card_with_variants
from .scoring import ModelUnderTest
from .search.batch_invariance import fixed_batch
from .search.drift import Budget
from .search.evaluate import Evaluator, Measurement, written
from .search.methods import compare
from .search.mixed_precision import search
from .search.network import Network, int8_graphs

__all__ = ["VARIANTS", "BudgetError", "Options", "quantize_bundle"]

VARIANTS: Final = ("fp16", "int8-cpu", "int8-trt")
_LIBRARIES: Final = ("mosrt", "onnx", "onnxruntime")
_SCREENING_CLIPS: Final = 16
_SCREENING_CLIPS_LARGE: Final = 8
_LARGE_BYTES: Final = 100_000_000
_REFERENCE: Final = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a quantisation.

    Attributes:
        variants: Variants to make, of `VARIANTS`.
        n_clips: Number of calibration clips.
        n_evaluation: Largest number of evaluation clips.
        views: Views of each evaluation clip; None for as many as the runtime takes by default.
        methods: Range methods to compare, of `mosrt_calibration.ranges.ranges.METHODS`.
        seed: Seed of the choice of clips.
        budget: Limits on the drift of every variant.
        full_report: Whether blocks are ranked and the curve is measured even if not needed.
        threads: Threads for scoring.
        cache: Directory of cached activation statistics.
    """

    variants: tuple[str, ...] = VARIANTS
    n_clips: int = 32
    n_evaluation: int = 64
    views: int | None = None
    methods: tuple[str, ...] = METHODS
    seed: int = 0
    budget: Budget = dataclasses.field(default_factory=Budget)
    full_report: bool = False
    threads: int = 1
    cache: Path = dataclasses.field(default_factory=default_cache)


class BudgetError(MosrtError, ValueError):
    """The drift of a variant is over the budget, and nothing was written.

    Attributes:
        result: Results for all variants.
    """

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


def quantize_bundle(
    bundle: Path,
    audio: Path,
    output: Path,
    options: Options,
    progress: Progress = no_progress,
) -> Result:
    """Adds variants to a bundle, or to a copy of it.

    Args:
        bundle: The bundle's directory.
        audio: Directory of speech.
        output: Directory to write: `bundle` itself, or one that does not exist yet.
        options: What to make, and how.
        progress: Makes progress bars.

    Raises:
        BundleError: The bundle cannot be quantised.
        BudgetError: A variant is over the budget; nothing was written.
        ClipsError: There are too few recordings.
        BatchInvarianceError: A variant gives two scores for one clip; nothing was written.
        NonFiniteError: An activation of the FP32 model is not finite.
        OutputError: `output` exists already, or cannot be written.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: a zip cannot be changed; unpack it first")
    if _REFERENCE not in manifest.variants:
        raise BundleError(f"{bundle}: has no variant fp32 to start from; export it again")
    opened.verify()
    with updated_bundle(bundle, output) as directory:
        choice = choose(
            audio,
            sample_rate_hz=manifest.sample_rate_hz,
            n_calibration=options.n_clips,
            n_evaluation=options.n_evaluation,
            seed=options.seed,
            progress=progress,
        )
        tested = ModelUnderTest(
            directory=directory, manifest=manifest, threads=options.threads, progress=progress
        )
        job = _Job(tested, choice, options)
        made = tuple(job.make(name) for name in options.variants)
        result = Result(choice=choice, variants=made, fp32_bytes=tested.n_bytes)
        variants = dict(manifest.variants)
        variants.update({one.name: one.variant for one in made if one.variant is not None})
        if any(one.variant is None for one in made):
            raise BudgetError(_refusal(result, options), result)
        kept = {file.path for variant in variants.values() for file in variant.files}
        for variant in manifest.variants.values():
            for file in variant.files:
                if file.path not in kept:  # of a variant that is replaced
                    (directory / file.path).unlink(missing_ok=True)
        manifest = dataclasses.replace(manifest, variants=variants)
        write_manifest(directory, manifest)
        card = opened.model_card() or f"# {manifest.name}\n"
        write_card(directory, card_with_variants(card, manifest))
    return result


def _refusal(result: Result, options: Options) -> str:
    budget = options.budget
    best = [
        f"{one.name} has a mean drift of {one.measured.drift.mean_abs:.4f} and a rank correlation "
        f"of {one.measured.drift.srcc:.4f} at best"
        for one in result.variants
        if one.variant is None
    ]
    rest = [f"--variant {one.name}" for one in result.variants if one.variant is not None]
    cure = f", make the other variants only ({' '.join(rest)})" if rest else ""
    return (
        f"no combination is within the limits (--max-drift {budget.max_drift:g}, --min-srcc "
        f"{budget.min_srcc:g}); nothing was written; {'; '.join(best)}. Allow more drift{cure}, or "
        "calibrate on recordings more like those to be scored"
    )


class _Job:
    """Makes variants of one model under test."""

    def __init__(self, tested: ModelUnderTest, choice: Choice, options: Options) -> None:
        self._tested = tested
        self._choice = choice
        self._options = options
        self._evaluator = Evaluator(tested)
        histograms = any(method != "min-max" for method in options.methods)
        found = [
            Network(tested, member, choice.calibration, histograms=histograms, cache=options.cache)
            for member in tested.reference.members
        ]
        self._networks = [network for network in found if network.has_weights]
        if not self._networks:
            raise BundleError("no network of this bundle has layers to quantise; use fp32")
        # Schemes and blocks are compared on fewer clips of a large model.
        large = tested.n_bytes > _LARGE_BYTES
        n_screening = _SCREENING_CLIPS_LARGE if large else _SCREENING_CLIPS
        self._screening = choice.calibration[:n_screening]

    def make(self, name: str) -> VariantResult:
        """Makes a variant, and writes its files if the drift is within the budget."""
        return self._fp16(name) if name == "fp16" else self._int8(name)

    def _fp16(self, name: str) -> VariantResult:
        models = {network.member.name: network.fp16() for network in self._networks}
        measured = self._evaluator.measure(
            models, self._choice.evaluation, name, kind="float16", views=self._options.views
        )
        variant = None
        if self._options.budget.holds(measured.drift):
            variant = self._written(name, "float16", models, measured)
        return VariantResult(name=name, measured=measured, variant=variant)

    def _int8(self, name: str) -> VariantResult:
        choice, options = self._choice, self._options
        comparison = compare(
            self._evaluator,
            self._networks,
            self._screening,
            methods=options.methods,
            symmetric=name == "int8-trt",
            budget=options.budget,
        )
        scheme = comparison.winner
        outcome = search(
            self._evaluator,
            self._networks,
            scheme,
            screening=self._screening,
            clips=choice.evaluation,
            budget=options.budget,
            curve=options.full_report,
            views=options.views,
        )
        point, variant = outcome.chosen, None
        if point is None:
            point = min(outcome.points, key=lambda p: p.measured.drift.mean_abs)
        else:
            offsets = point.measured.offsets
            models = int8_graphs(self._networks, scheme, point.kept_fp32)
            if any(offsets):
                models = {name: with_offsets(model, offsets) for name, model in models.items()}
            calibration = {
                **scheme.to_dict(),
                "float_blocks": list(point.kept_fp32),
                "offsets": [float(f"{offset:.3g}") for offset in offsets],
                "seed": options.seed,
                "clips": [clip.to_dict() for clip in choice.calibration],
                "clips_sha256": list_sha256(choice.calibration),
                "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            }
            variant = self._written(name, scheme.kind, models, point.measured, calibration)
        return VariantResult(
            name=name,
            measured=point.measured,
            variant=variant,
            comparison=comparison,
            outcome=outcome,
        )

    def _written(
        self,
        name: str,
        kind: str,
        models: Mapping[str, Any],
        measured: Measurement,
        calibration: Mapping[str, Any] | None = None,
    ) -> Variant:
        """Writes the files of a variant; gives its manifest entry."""
        clips = self._choice.evaluation
        variant = written(self._tested, models, self._tested.directory, name, kind)
        cpu = CpuFeatures.read()
        folders = {name: one.to_dict() for name, one in measured.by_folder.items()}
        drift = {
            **measured.drift.to_dict(),
            "worst_domain_mean": float(f"{measured.worst_domain:.2g}"),
            **{
                f"{head}_{key}": float(f"{getattr(drift, key):.2g}")
                for head, drift in measured.heads.items()
                for key in ("max_abs", "mean_abs")
            },
            **({"by_folder": folders} if folders else {}),
            "clips_sha256": list_sha256(clips),
            "held_out": self._choice.held_out,
            **({} if self._options.views is None else {"views": self._options.views}),
            "cpu": {"architecture": cpu.architecture, "int8_dot": cpu.int8_dot},
        }
        return dataclasses.replace(
            variant,
            drift=drift,
            calibration=calibration,
            fixed_batch=fixed_batch(self._tested, variant, clips),
        )
