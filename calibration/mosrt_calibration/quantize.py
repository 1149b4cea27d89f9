"""Adds FP16 and INT8 variants to an FP32 bundle, from a directory of speech."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Variant
from mosrt.bundle.writer import updated_bundle, write_card, write_manifest
from mosrt.errors import BundleError, MosrtError
from mosrt.host.cpu import CpuFeatures

from .clips import Choice, Clip, FileProgress, choose, list_sha256
from .passes.bias_correction import with_offsets
from .ranges.collector import default_cache
from .ranges.ranges import METHODS
from .report import card_with_variants
from .scoring import ModelUnderTest, Progress
from .search.drift import Budget
from .search.evaluate import Evaluator, Measurement, fixed_batch, written
from .search.methods import Comparison, compare
from .search.mixed_precision import Outcome, Point, search
from .search.network import Network, Scheme, int8_graphs

__all__ = ["VARIANTS", "BudgetError", "Options", "Result", "VariantResult", "quantize_bundle"]

VARIANTS: Final = ("fp16", "int8-cpu", "int8-trt")
_LIBRARIES: Final = ("mosrt", "onnx", "onnxruntime")
_SCREENING_CLIPS: Final = 16
_SCREENING_CLIPS_LARGE: Final = 8
_LARGE_BYTES: Final = 100_000_000
_REFERENCE: Final = "fp32"
_FLOAT16: Final = "float16"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantResult:
    """Result for one variant.

    Attributes:
        name: Name of the variant.
        measured: Drift, speed and size of the graphs that were chosen, or of those with the least
            drift if none is within the budget.
        within_budget: Whether the drift is within the budget.
        fixed_batch: Batch size that the variant needs; see `search.evaluate.fixed_batch`.
        comparison: Comparison of quantisation schemes; None for fp16.
        outcome: Search for blocks to keep in FP32; None for fp16.
    """

    name: str
    measured: Measurement
    within_budget: bool
    fixed_batch: int | None = None
    comparison: Comparison | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a quantisation.

    Attributes:
        choice: The clips.
        made: Each variant.
        fp32_bytes: Size of the files of the FP32 variant.
    """

    choice: Choice
    variants: tuple[VariantResult, ...]
    fp32_bytes: int


class BudgetError(MosrtError):
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
    progress: Progress,
    file_progress: FileProgress = iter,
) -> Result:
    """Adds variants to a bundle, or to a copy of it.

    Args:
        bundle: The bundle's directory.
        audio: Directory of speech.
        output: Directory to write: `bundle` itself, or one that does not exist yet.
        options: What to make, and how.
        progress: Makes progress bars over clips.
        file_progress: Wraps the iteration over files while clips are chosen.

    Raises:
        BundleError: The bundle cannot be quantised.
        BudgetError: A variant is over the budget; nothing was written.
        ClipsError: There are too few recordings.
        BatchInvarianceError: A variant gives two scores for one clip; nothing was written.
        NonFiniteError: An activation of the FP32 model is not finite.
        OutputError: `output` exists already, or cannot be written.
    """
    opened = Bundle.open(bundle)
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: a zip cannot be changed; unpack it first")
    if _REFERENCE not in opened.manifest.variants:
        raise BundleError(f"{bundle}: has no variant fp32 to start from; export it again")
    opened.verify()
    with updated_bundle(bundle, output) as directory:
        choice = choose(
            audio,
            sample_rate_hz=opened.manifest.sample_rate_hz,
            n_calibration=options.n_clips,
            n_evaluation=options.n_evaluation,
            seed=options.seed,
            progress=file_progress,
        )
        tested = ModelUnderTest(
            directory=directory, manifest=opened.manifest, threads=options.threads
        )
        job = _Job(tested, choice, options, progress)
        made, variants = [], dict(opened.manifest.variants)
        for name in options.variants:
            one, models, calibration = job.make(name)
            if one.within_budget:
                one, variants[name] = job.finish(one, models, calibration)
            made.append(one)
        result = Result(
            choice=choice,
            variants=tuple(made),
            fp32_bytes=sum(file.bytes for file in tested.reference.files),
        )
        failed = [one for one in made if not one.within_budget]
        if failed:
            raise BudgetError(_refusal(failed, options), result)
        manifest = dataclasses.replace(opened.manifest, variants=variants)
        _remove_orphans(directory, opened, variants)
        write_manifest(directory, manifest)
        card = opened.model_card() or f"# {manifest.name}\n"
        write_card(directory, card_with_variants(card, manifest))
    return result


def _refusal(failed: Sequence[VariantResult], options: Options) -> str:
    budget = options.budget
    lines = [
        f"{one.name}: mean drift {one.measured.drift.mean_abs:.4f}, rank correlation "
        f"{one.measured.drift.srcc:.4f} at best"
        for one in failed
    ]
    failed_names = {one.name for one in failed}
    rest = [f"--variant {name}" for name in options.variants if name not in failed_names]
    cure = f", make the other variants only ({' '.join(rest)})" if rest else ""
    return (
        f"no combination is within the limits (--max-drift {budget.max_drift:g}, --min-srcc "
        f"{budget.min_srcc:g}); nothing was written\n  "
        + "\n  ".join(lines)
        + f"\nAllow more drift{cure}, or calibrate on recordings more like those to be scored"
    )


def _remove_orphans(directory: Path, opened: Bundle, variants: dict[str, Variant]) -> None:
    """Deletes the files of replaced variants that no variant uses any more."""
    kept = {file.path for variant in variants.values() for file in variant.files}
    for variant in opened.manifest.variants.values():
        for file in variant.files:
            if file.path not in kept:
                (directory / file.path).unlink(missing_ok=True)


class _Job:
    """Makes variants of one model under test."""

    def __init__(
        self, tested: ModelUnderTest, choice: Choice, options: Options, progress: Progress
    ) -> None:
        self._tested = tested
        self._choice = choice
        self._options = options
        self._evaluator = Evaluator(tested, progress)
        found = [
            Network(
                tested,
                member,
                choice.calibration,
                histograms=any(method != "min-max" for method in options.methods),
                cache=options.cache,
                progress=progress,
            )
            for member in tested.reference.members
        ]
        self._networks = [network for network in found if network.has_weights]
        if not self._networks:
            raise BundleError("no network of this bundle has layers to quantise; use fp32")

    def make(self, name: str) -> tuple[VariantResult, dict[str, Any], dict[str, Any] | None]:
        """Makes a variant; gives its result, its graphs by network and its calibration."""
        clips = self._choice.evaluation
        if name == "fp16":
            models = {network.member.name: network.fp16() for network in self._networks}
            measured = self._evaluator.measure(
                models, clips, name, kind=_FLOAT16, views=self._options.views
            )
            holds = self._options.budget.holds(measured.drift)
            return VariantResult(name=name, measured=measured, within_budget=holds), models, None
        symmetric = name == "int8-trt"
        comparison = compare(
            self._evaluator,
            self._networks,
            self._screening,
            methods=self._options.methods,
            symmetric=symmetric,
            budget=self._options.budget,
        )
        scheme = comparison.winner
        outcome = search(
            self._evaluator,
            self._networks,
            scheme,
            screening=self._screening,
            clips=clips,
            symmetric=symmetric,
            budget=self._options.budget,
            curve=self._options.full_report,
            views=self._options.views,
        )
        point = outcome.chosen or min(outcome.points, key=lambda p: p.measured.drift.mean_abs)
        models = int8_graphs(self._networks, scheme, point.kept_fp32, symmetric=symmetric)
        if any(point.measured.offsets):
            models = {
                network: with_offsets(model, point.measured.offsets)
                for network, model in models.items()
            }
        made = VariantResult(
            name=name,
            measured=point.measured,
            within_budget=outcome.chosen is not None,
            comparison=comparison,
            outcome=outcome,
        )
        return made, models, self._calibration(scheme, point)

    @property
    def _screening(self) -> tuple[Clip, ...]:
        """Calibration clips that schemes and blocks are compared on; fewer for a large model."""
        n_bytes = sum(file.bytes for file in self._tested.reference.files)
        n_clips = _SCREENING_CLIPS_LARGE if n_bytes > _LARGE_BYTES else _SCREENING_CLIPS
        return self._choice.calibration[:n_clips]

    def finish(
        self, made: VariantResult, models: dict[str, Any], calibration: dict[str, Any] | None
    ) -> tuple[VariantResult, Variant]:
        """Writes the files of a variant; gives its result and its manifest entry."""
        kind = _FLOAT16
        if made.comparison is not None:
            kind = made.comparison.winner.kind(symmetric=made.name == "int8-trt")
        variant = written(self._tested, models, self._tested.directory, made.name, kind)
        batch = fixed_batch(self._tested, variant, self._choice.evaluation)
        measured = made.measured
        cpu = CpuFeatures.read()
        folders = {name: one.to_dict() for name, one in measured.by_folder.items()}
        drift = {
            **measured.drift.to_dict(),
            "worst_domain_mean": float(f"{measured.worst_domain:.2g}"),
            **({"by_folder": folders} if folders else {}),
            "clips_sha256": list_sha256(self._choice.evaluation),
            "held_out": self._choice.held_out,
            **({} if self._options.views is None else {"views": self._options.views}),
            "cpu": {"architecture": cpu.architecture, "int8_dot": cpu.int8_dot},
        }
        variant = dataclasses.replace(
            variant, drift=drift, calibration=calibration, fixed_batch=batch
        )
        return dataclasses.replace(made, fixed_batch=batch), variant

    def _calibration(self, scheme: Scheme, point: Point) -> dict[str, Any]:
        clips = self._choice.calibration
        return {
            **scheme.to_dict(),
            "float_blocks": list(point.kept_fp32),
            "offsets": [float(f"{offset:.3g}") for offset in point.measured.offsets],
            "seed": self._choice.seed,
            "clips": [clip.to_dict() for clip in clips],
            "clips_sha256": list_sha256(clips),
            "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        }
