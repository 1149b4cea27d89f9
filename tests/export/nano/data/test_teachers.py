"""Tests DNSMOS Pro against the published module, and full-reference fidelity."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from torch import nn

from mosrt.errors import MosrtError
from mosrt_export.nano.data.degradations import add_noise
from mosrt_export.nano.data.teachers import (
    DnsmosP808,
    DnsmosP835,
    DnsmosPro,
    TeacherError,
    fidelity,
    log_spectral_distance_db,
)
from tests.standins.nano import speech

# The published file is TorchScript, which torch reads and calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Encoder(nn.Module):
    """Four convolutions with batch norm, and the maximum over time and frequency."""

    def __init__(self) -> None:
        super().__init__()
        blocks = []
        for i, (n_in, n_out) in enumerate(((1, 32), (32, 32), (32, 64), (64, 64))):
            block = [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
            blocks.append(nn.Sequential(*block, *([nn.MaxPool2d(3)] if i == 1 else [])))
        self.encoder = nn.Sequential(*blocks)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.encoder(spectrum)
        return maps.amax(dim=(2, 3))


class Published(nn.Module):
    """The network of DNSMOS Pro with random weights and the published names."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = Encoder()
        self._head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        mean, variance = self._head(self._encoder(spectrum)).unbind(dim=1)
        return torch.stack([2 * mean + 3, nn.functional.softplus(variance)], dim=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Published().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(0, 0.1)
    path = tmp_path_factory.mktemp("teachers") / "dnsmospro.pt"
    torch.jit.trace(network, torch.zeros(1, 1, 50, 161)).save(str(path))  # type: ignore[no-untyped-call]
    return path


def test_dnsmos_pro_is_the_published_network(published: Path) -> None:
    """Folded batch norm and our spectrum, against the module on librosa's spectrum: 1e-4 MOS."""
    module = torch.jit.load(str(published), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    teacher = DnsmosPro(published)
    waveform = speech(4)
    levelled = waveform * (10 ** (-26 / 20) / np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
    magnitude = np.abs(
        librosa.stft(levelled, n_fft=320, hop_length=160, win_length=320, pad_mode="reflect")
    )
    spectrum = np.log10(np.clip(magnitude, 1e-7, 1e7)).T.astype(np.float32)
    with torch.inference_mode():
        wanted = float(module(torch.from_numpy(spectrum)[None, None])[0, 0])
    assert abs(wanted - 3) > 0.05
    assert teacher(waveform) == pytest.approx(wanted, abs=1e-4)
    assert teacher(waveform * np.float32(0.1)) == pytest.approx(wanted, abs=1e-3)
    assert DnsmosPro(published, reduced=True)(waveform) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("teacher", [DnsmosPro, DnsmosP808, DnsmosP835])
def test_a_wrong_file_is_named(teacher: type, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.bin"
    wrong.write_bytes(b"neither of them")
    with pytest.raises(MosrtError, match=r"wrong\.bin: not a DNSMOS"):
        teacher(wrong)
    with pytest.raises(MosrtError, match=r"none\.bin: not a DNSMOS"):
        teacher(tmp_path / "none.bin")


def test_another_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    linear = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    linear.save(str(path))
    with pytest.raises(TeacherError, match=r"other\.pt: not a DNSMOS Pro model"):
        DnsmosPro(path)


def test_a_clip_has_full_fidelity_to_itself() -> None:
    """Within the four digits of the largest PESQ."""
    clean = speech(3)
    assert fidelity(clean, clean) == pytest.approx(5.0, abs=1e-3)
    assert log_spectral_distance_db(clean, clean) == 0.0


def test_fidelity_falls_with_noise() -> None:
    clean = speech(3)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    scores = [fidelity(clean, add_noise(clean, noise, snr_db)) for snr_db in (45, 30, 15, 0)]
    assert scores == sorted(scores, reverse=True)
    assert min(-np.diff(scores)) > 0.2
    assert 1 <= scores[-1] < 2
    assert scores[0] > 4


def test_missing_high_frequencies_lower_the_fidelity() -> None:
    """The distance penalises a missing band, which PESQ hardly does."""
    clean = speech(3)
    spectrum = np.fft.rfft(clean)
    spectrum[int(len(spectrum) * 0.43) :] = 0  # above 3.4 kHz
    narrow = np.fft.irfft(spectrum, len(clean)).astype(np.float32)
    assert fidelity(clean, narrow) < fidelity(clean, clean) - 0.5


@pytest.mark.parametrize("gain", [0.01, 0.3, 8.0])
def test_the_distance_does_not_depend_on_level(gain: float) -> None:
    """Within the rounding of float32, in dB."""
    clean = speech(2)
    rng = np.random.default_rng(1)
    other = add_noise(clean, rng.standard_normal(len(clean)).astype(np.float32), 10)
    distance = log_spectral_distance_db(clean, other)
    assert distance > 3
    louder = (np.float32(gain) * other).astype(np.float32)
    assert log_spectral_distance_db(clean, louder) == pytest.approx(distance, abs=1e-3)


def test_the_distance_of_a_known_filter() -> None:
    """Noise whose upper half is 6 dB lower differs by 6 dB in half of the bands.

    Levels are relative to peaks, which vary by some tenths of a dB in 5 s of noise.
    """
    noise = np.random.default_rng(2).standard_normal(80_000)
    spectrum = np.fft.rfft(noise)
    spectrum[len(spectrum) // 2 :] /= 2
    filtered = np.fft.irfft(spectrum, len(noise))
    distance = log_spectral_distance_db(noise.astype(np.float32), filtered.astype(np.float32))
    assert distance == pytest.approx(20 * np.log10(2) * np.sqrt(0.5), abs=0.3)


def test_the_distance_is_symmetric() -> None:
    clean = speech(2)
    other = (np.sign(clean) * np.abs(clean) ** 0.7).astype(np.float32)
    distance = log_spectral_distance_db(clean, other)
    assert distance > 1
    assert log_spectral_distance_db(other, clean) == pytest.approx(distance, abs=1e-9)


@pytest.mark.parametrize("n_samples", [48_000, 2000])
def test_fidelity_without_speech_is_nan(n_samples: int) -> None:
    """Silence, and a clip too short for PESQ."""
    silence = np.zeros(n_samples, np.float32)
    clean = speech(3)[:n_samples] if n_samples < 3000 else silence
    assert np.isnan(fidelity(clean, silence))
