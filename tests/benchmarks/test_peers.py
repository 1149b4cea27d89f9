from pathlib import Path

import numpy as np
import pytest
import soundfile

from mosrt_bench.clips import audio_files
from mosrt_bench.errors import BenchError
from mosrt_bench.peers import parse_peer, peer_results
from tests.standins.dnsmos import P835_SHAPE, dnsmos_model


def test_peers_score_at_16_khz_and_skip_unusable_clips(tmp_path: Path) -> None:
    """A stand-in that answers with multiples of the mean sample shows the level of its input."""
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "level.wav", np.full(48_000, 0.5), 48_000)
    (tmp_path / "clips" / "broken.wav").write_bytes(b"")
    peer = parse_peer(f"onnx:{dnsmos_model(tmp_path / 'p835.onnx', P835_SHAPE, 3)}")
    (row,) = peer_results([peer], audio_files([tmp_path / "clips"]))
    assert row["peer"] == "DNSMOS P.835 OVRL (p835.onnx)"
    assert np.isnan(row["scores"]["broken.wav"])
    raw = 3 * 0.5  # the third output is the overall score
    wanted = -0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535
    # the resampler rings at both ends
    assert row["scores"]["level.wav"] == pytest.approx(wanted, abs=0.01)
    assert row["ms"] > 0


@pytest.mark.parametrize("text", ["p835.onnx", "torch:x.pt", "onnx:"])
def test_other_peers_are_refused(text: str) -> None:
    with pytest.raises(BenchError, match=f"--peer {text}: "):
        parse_peer(text)
