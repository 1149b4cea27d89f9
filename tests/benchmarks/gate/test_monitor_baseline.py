"""What `mosrt gate` records serves a monitor as its baseline."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from prometheus_client import CollectorRegistry

import mosrt
from mosrt_bench.clips import audio_files
from mosrt_bench.gate.baseline import score_set
from tests.conftest import HANG_S, noise


def test_a_recorded_baseline(tmp_path: Path) -> None:
    clips, file, registry = tmp_path / "clips", tmp_path / "gate.json", CollectorRegistry()
    clips.mkdir()
    for i in range(20):
        soundfile.write(clips / f"{i}.wav", noise(2_000 + 10 * i), 16_000)
    setup = {"variant": None, "provider": "cpu", "threads": 1, "views": 2, "domain": "p808"}
    recorded = score_set(audio_files([clips]), model="nano", **setup)  # type: ignore[arg-type]
    recorded.write(file)
    with mosrt.Monitor("nano", baseline=file, sample=1.0, registry=registry) as monitor:
        values = {"series": "all", "statistic": "mean"}
        found = registry.get_sample_value("mosrt_monitor_baseline_mos", values)
        scores = [clip.score for clip in recorded.clips.values()]
        assert found == pytest.approx(np.mean(scores))
        # The same clip gets the recorded score: with the gate's domain and number of views.
        samples, rate_hz = soundfile.read(clips / "3.wav", dtype="int16")
        assert monitor.offer(samples, rate_hz)
        assert monitor.flush(HANG_S)
        total = registry.get_sample_value("mosrt_monitor_mos_sum")
        assert total == recorded.clips["3.wav"].score
    with pytest.raises(mosrt.BaselineError, match=r"gate\.json: recorded with domain p808"):
        mosrt.Monitor("nano", baseline=file, domain="overall", registry=registry)
