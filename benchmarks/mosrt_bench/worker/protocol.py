"""A configuration, its interface once loaded, and the messages that control it from outside.

A message is one line of JSON. The process that measures writes a request to the worker's standard
input, `{"do": NAME, ...}` with the arguments of the `Runner` method of that name, and reads an
answer from its standard output: `{"answer": ...}`, or `{"error": TEXT}`. The first request is
`{"do": "open"}`, whose answer has the runner's `provider` and `facts`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from mosrt.bundle.manifest import Manifest

__all__ = [
    "ON_NVIDIA",
    "Configuration",
    "FrontEnd",
    "LoadKind",
    "Runner",
    "time_callers",
    "torch_makes_inputs",
]

LoadKind = Literal["batch", "callers"]
"""How several recordings are scored at once: by `score_many`, or by threads that share a model."""

ON_NVIDIA: Final = ("cuda", "tensorrt", "tensorrt-ep")
"""Execution providers for NVIDIA GPUs."""

FrontEnd = Literal["librosa", "mosrt"]
"""What makes the inputs of a torch model: librosa, as in the published code, or mosrt."""


def torch_makes_inputs(manifest: Manifest) -> bool:
    """Whether a model's published code runs in torch as it is, from recordings on."""
    is_fusion = manifest.ssl and manifest.mel and "config" in manifest.provenance
    return bool(is_fusion) or manifest.family == "segments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to run one model: with mosrt on a provider, or in torch.

    As a dictionary (`dataclasses.asdict`) it is JSON-ready, and goes to another process so.

    Attributes:
        model: Name of the model.
        bundle: Path of the bundle; for torch, of the one that its checkpoints became.
        variant: Precision variant; for torch "fp32" or "fp16".
        provider: Execution provider; for torch "torch-cpu" or "torch-cuda", with "-compiled" after
            it where torch compiles the model.
        threads: Threads of one call.
        plan: Crop plan, such as "reference:0"; the model's default grid if None.
        views: Views per recording; the plan's own number if None.
        checkpoints: For torch, paths of checkpoints, one per network of the bundle.
        front_end: For torch, what makes the model's inputs.
        is_reference: Whether the others of its bundle are compared with its scores.
    """

    model: str
    bundle: str
    variant: str
    provider: str
    threads: int
    plan: str | None = None
    views: int | None = None
    checkpoints: Sequence[str] = ()
    front_end: FrontEnd = "librosa"
    is_reference: bool = False

    @property
    def label(self) -> str:
        """The name without the number of threads: "MODEL VARIANT PROVIDER"."""
        return f"{self.model} {self.variant} {self.provider}"

    @property
    def name(self) -> str:
        """The name in a report: "MODEL VARIANT PROVIDER xTHREADS"."""
        return f"{self.label} x{self.threads}"

    @property
    def is_torch(self) -> bool:
        """Whether torch runs it instead of mosrt."""
        return self.provider.startswith("torch-")

    @property
    def on_nvidia(self) -> bool:
        """Whether it runs on an NVIDIA GPU."""
        return self.provider in ON_NVIDIA or self.provider.startswith("torch-cuda")

    def without_paths(self, text: str) -> str:
        """Text with the names of its files for their paths, since a report may be published."""
        for path in (self.bundle, *self.checkpoints):
            text = text.replace(path, Path(path).name)
        return text


class Runner(Protocol):
    """A loaded configuration: mosrt on an execution provider, or eager torch.

    Clips are audio files. Those that are timed are read before the clock starts.

    Attributes:
        provider: The execution provider that runs it.
        facts: Versions, devices and the time that building engines took, JSON-ready.
    """

    provider: str
    facts: dict[str, Any]

    def score(self, clip: Path) -> dict[str, Any]:
        """Scores a clip for every domain.

        Returns:
            "scores", the MOS by domain or the uncertainty, nan where there is none, and
            "duration_s", nan for a clip that a guard refuses.
        """
        ...

    def time(self, clip: Path) -> dict[str, float]:
        """Scores a clip for the default domain.

        Returns:
            Times in ms by stage, and "total", from the file's bytes to the score.
        """
        ...

    def run_many(self, clip: Path, kind: LoadKind, count: int, n_clips: int) -> float:
        """Scores copies of a clip, several at once.

        Args:
            clip: The clip.
            kind: How.
            count: How many at once.
            n_clips: How many in all.

        Returns:
            The time that took, in seconds.
        """
        ...

    def nodes(self) -> dict[str, int] | None:
        """Number of graph nodes that each provider runs; None where it is not known."""
        ...

    def close(self) -> None:
        """Releases the model."""
        ...


def time_callers(score: Callable[[], object], count: int, n_clips: int) -> float:
    """The time in seconds that `count` threads take to score `n_clips` clips, one by one."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda _: None, range(count)))  # threads start before the clock does
        started = time.perf_counter()
        list(pool.map(lambda _: score(), range(n_clips)))
        return time.perf_counter() - started
