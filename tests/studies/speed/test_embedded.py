import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
from click.testing import CliRunner

from mosrt_studies.accuracy.peers import PeerError
from mosrt_studies.figures.render import render
from mosrt_studies.speed import embedded
from mosrt_studies.speed.embedded import p808_image, peak_mb, process_ms


def test_peak_is_the_processs_own(tiny: Path, clips: list[Path]) -> None:
    arguments = ["score", "--model", str(tiny), "--format", "jsonl", *map(str, clips[:2])]
    peak, n_lines = peak_mb(arguments)
    assert n_lines == 2
    # This process grows by 400 MB; one started from it must not inherit that.
    ballast = np.ones(50_000_000)
    again, _ = peak_mb(arguments)
    assert ballast.sum() == 5e7
    assert 30 < peak < 400
    assert again == pytest.approx(peak, abs=60)


def test_process_time_is_of_a_whole_process() -> None:
    # An interpreter alone takes some milliseconds, and help takes less than scores.
    assert 10 < process_ms(["--help"]) < 60_000


def test_failures_are_told(clips: list[Path]) -> None:
    with pytest.raises(PeerError, match="mosrt score failed: .*no such bundle"):
        process_ms(["score", "--model", "nothing", str(clips[0])])


def test_p808_image_is_a_mel_spectrogram() -> None:
    """Against scipy's short-time Fourier transform; the mel bands only by where they put tones."""
    n_samples = 144_160
    time_s = np.arange(n_samples) / 16_000
    low, high = (np.sin(2 * np.pi * f * time_s).astype(np.float32) for f in (300.0, 5000.0))
    image = p808_image(low + 0.1 * high)
    assert image.shape == (1, 901 - 1, 120)
    assert image.dtype == np.float32
    assert image.max() == pytest.approx(1.0)  # (0 dB + 40) / 40
    assert image.min() >= -1.0  # 80 dB below
    _, _, power = scipy.signal.stft(low[:-160], nperseg=321, noverlap=161, boundary="zeros")
    assert power.shape[1] - image.shape[1] in (0, 1)
    middle = image[0, 450]
    peak = int(middle.argmax())
    assert 5 < peak < 20  # 300 Hz on a Slaney scale of 120 bands up to 8 kHz
    # 20 dB weaker; a band of unit area is broader and lower at 5 kHz.
    second = float(middle[60:].max()) * 40 - 40
    assert -45 < second < -20


def test_missing_model_is_told(tiny: Path, clips: list[Path], tmp_path: Path) -> None:
    command = ["--model", str(tiny), "--teachers", str(tmp_path), "--audio", str(clips[0]),
               "--clips", str(clips[0]), "--output", str(tmp_path / "x.json")]  # fmt: skip
    result = CliRunner().invoke(embedded.main, command)
    assert result.exit_code == 3
    assert "dnsmos_p808.onnx is missing; pass --teachers its folder" in result.output


def test_command(
    tiny: Path, clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "P808", lambda _: lambda clip: float(clip.sum()))
    monkeypatch.setattr(embedded, "process_ms", lambda _: 12.0)
    out = tmp_path / "embedded.json"
    command = ["--model", str(tiny), "--teachers", str(tmp_path), "--audio", str(clips[-1]),
               "--clips", str(clips[-1]), "--rounds", "15", "--output", str(out)]  # fmt: skip
    result = CliRunner().invoke(embedded.main, command, catch_exceptions=False)
    assert result.exit_code == 0
    run = json.loads(out.read_text(encoding="utf-8"))
    assert [len(times["times_ms"]) for times in run["timings"].values()] == [15, 15, 15]
    assert run["timings"][run["process"]]["median_ms"] == 12.0
    assert run["files"] == 1
    assert run["timings"]["tiny"]["median_ms"] > 0
    text = render(tmp_path)
    assert "\n| **tiny** | " in text
    assert "`mosrt score` of 1 files in a fresh process takes 0.01 s" in text
