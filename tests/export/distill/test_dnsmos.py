"""Tests how DNSMOS models are told apart, and their input against librosa's."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
from numpy.typing import NDArray

from mosrt.errors import BundleError
from mosrt_export.distill.dnsmos import DnsmosP808, DnsmosP835, open_dnsmos
from tests.standins.dnsmos import P808_SHAPE, P835_SHAPE, dnsmos_model
from tests.standins.nano import speech


class Recorded(DnsmosP808):
    """Keeps the inputs of the network."""

    def _run(self, feed: NDArray[np.float32]) -> NDArray[np.float32]:
        self.fed = [*getattr(self, "fed", []), feed]
        return super()._run(feed)


def test_p808_reads_the_spectrogram_of_librosa(tmp_path: Path) -> None:
    """A matrix product in float32 against librosa: 0.01 dB down to the floor of -80 dB."""
    teacher = Recorded(dnsmos_model(tmp_path / "p808.onnx", P808_SHAPE, 1))
    clean = np.resize(speech(4), 80_000)
    score = teacher(clean)
    tiled = np.concatenate([clean] * 2)[:144_160]
    mel = librosa.feature.melspectrogram(
        y=tiled[:-160], sr=16_000, n_fft=321, hop_length=160, n_mels=120
    )
    wanted = librosa.power_to_db(mel, ref=np.max).T
    (fed,) = teacher.fed
    assert fed.shape == (1, 900, 120)
    np.testing.assert_allclose(fed[0] * 40 - 40, wanted, atol=0.01)
    assert score == pytest.approx(float(np.mean((wanted + 40) / 40)), abs=1e-3)


def test_p808_does_not_depend_on_level(tmp_path: Path) -> None:
    teacher = DnsmosP808(dnsmos_model(tmp_path / "p808.onnx", P808_SHAPE, 1))
    assert teacher(speech(3) * np.float32(0.05)) == pytest.approx(teacher(speech(3)), abs=1e-4)


@pytest.mark.parametrize(("seconds", "count"), [(5, 1), (9.01, 1), (10, 1), (11, 2), (13, 4)])
def test_windows_as_published(tmp_path: Path, seconds: float, count: int) -> None:
    """There are floor(length - 9.01) + 1 windows, after short clips are repeated."""
    teacher = Recorded(dnsmos_model(tmp_path / "p808.onnx", P808_SHAPE, 1))
    noise = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
    teacher(noise)
    assert len(teacher.fed) == count


def test_p835_is_mapped_as_published(tmp_path: Path) -> None:
    """The third output is mapped by the polynomial of DNS-Challenge."""
    teacher = DnsmosP835(dnsmos_model(tmp_path / "p835.onnx", P835_SHAPE, 3))
    level = np.full(144_160, 0.9, np.float32)
    raw = 3 * 0.9
    wanted = -0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535
    assert teacher(level) == pytest.approx(wanted, abs=1e-3)


def test_a_file_tells_which_model_it_is(tmp_path: Path) -> None:
    p808 = open_dnsmos(dnsmos_model(tmp_path / "a.onnx", P808_SHAPE, 1))
    assert isinstance(p808, DnsmosP808)
    p835 = open_dnsmos(dnsmos_model(tmp_path / "b.onnx", P835_SHAPE, 3))
    assert isinstance(p835, DnsmosP835)


@pytest.mark.parametrize(("shape", "n_outputs"), [(["N", 144_160], 1), (["N", 80, 300], 1)])
def test_other_models_are_refused(tmp_path: Path, shape: list[int | str], n_outputs: int) -> None:
    with pytest.raises(BundleError, match=r"x\.onnx: neither DNSMOS P\.808"):
        open_dnsmos(dnsmos_model(tmp_path / "x.onnx", shape, n_outputs))


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(BundleError, match=r"x\.onnx: not a DNSMOS model"):
        open_dnsmos(tmp_path / "x.onnx")
