"""Models that read segments: what they are fed for a shorter recording, and what info shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from mosrt.bundle.bundle import Bundle
from mosrt.cli.main import main
from mosrt.mos.scorer import FusionScorer
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
