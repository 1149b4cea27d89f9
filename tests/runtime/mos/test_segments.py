"""Models that read segments: what they are fed for a shorter recording, and what info shows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from mosrt import CropPlan
from mosrt.audio.recording import Recording
from mosrt.audio.sources import ArraySource
from mosrt.bundle.bundle import Bundle
from mosrt.cli.main import main
from mosrt.mos.scorer import FusionFrontEnd, FusionScorer
from tests.standins.segments import with_segments

Array = npt.NDArray[Any]


class Backend:
    """Keeps the shapes of what it is fed, and gives the same score for all."""

    def __init__(self, provider: str, batch_size: int) -> None:
        self.provider = provider
        self.batch_size = batch_size
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        (waveform,) = feeds.values()
        self.shapes.append(waveform.shape)
        return {name: np.full((1, len(waveform), 3), 3, np.float32) for name in outputs}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("provider", "batch_size", "n_samples"),
    [
        ("cpu", 1, 17_600),
        ("openvino-fp32", 1, 17_600),
        ("cuda", 4, 48_000),
        ("tensorrt", 1, 48_000),
        # A server may have an engine, and joins only requests of one length.
        ("triton", 1, 48_000),
    ],
)
def test_only_backends_of_the_cpu_are_fed_short_segments(
    tiny: Path, tmp_path: Path, provider: str, batch_size: int, n_samples: int
) -> None:
    manifest = Bundle.open(with_segments(tiny, tmp_path / "segments")).manifest
    backend = Backend(provider, batch_size)
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    options: dict[str, Any] = {"variant": "fp32", "threads": 1, "on_bad_audio": "error"}
    with FusionScorer(manifest, backend, remove_silence=False, **options) as scorer:
        score = scorer.score(noise, 16_000)
    assert backend.shapes == [(batch_size, n_samples)]
    assert (score.n_views, score.windows) == (1, ((0.0, 1.0),))


def test_info_says_how_segments_are_chosen(tiny: Path, tmp_path: Path) -> None:
    bundle = with_segments(tiny, tmp_path / "segments")
    shown = CliRunner().invoke(main, ["info", str(bundle)], catch_exceptions=False).stdout
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if " " in line.strip())
    assert lines["waveform"] == "segments of 3 s"
    assert lines["views"] == "the fewest that start at most 1 s apart"


class CountingSource(ArraySource):
    """Counts how often it is read."""

    n_reads = 0

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        self.n_reads += 1
        return super().blocks()


@pytest.mark.parametrize(
    ("views", "starts", "n_passes"),
    [
        (None, None, 1),  # 98 segments, each of which has most of the one before it
        (5, None, 1),  # with gaps between them
        (None, [60_000, 0, 1_500_000, 1_500_000, 7], 3),
    ],
)
def test_segments_of_long_recordings_are_read_in_one_pass(
    tiny: Path, tmp_path: Path, views: int | None, starts: list[int] | None, n_passes: int
) -> None:
    front_end = FusionFrontEnd(Bundle.open(with_segments(tiny, tmp_path / "segments")).manifest)
    noise = np.random.default_rng(0).normal(0, 0.1, 1_600_000).astype(np.float32)
    source = CountingSource(noise, 16_000)
    recording = Recording(source, 16_000, kept_s=0.0)
    plan = CropPlan.grid(recording.n_samples, views, geometry=front_end.geometry)
    if starts is not None:
        plan = CropPlan(np.array(starts), np.zeros((len(starts), 0), np.int64))
    source.n_reads = 0
    fed = list(front_end.views(recording, plan))
    assert source.n_reads == n_passes
    assert len(fed) == plan.n_views == (len(starts) if starts else views or 98)
    for feeds, start in zip(fed, plan.ssl_starts.tolist(), strict=True):
        np.testing.assert_array_equal(feeds["waveform"], noise[start : start + 48_000])
