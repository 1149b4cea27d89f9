"""Teachers: our front ends and folded networks against the published ones.

The published files are not part of the project; they are looked for in `shared/teachers` beside
the checkout, and tests that need them are skipped where they are not.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from mosrt.errors import MosrtError
from mosrt_export.nano.data.teachers import DnsmosP808, DnsmosP835, DnsmosPro, TeacherError
from tests.standins.nano import speech

# The published file is TorchScript, which torch reads and calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

FOLDER = Path(__file__).parents[5] / "shared" / "teachers"


def published(name: str) -> Path:
    if not (FOLDER / name).is_file():
        pytest.skip(f"shared/teachers/{name} is not there")
    return FOLDER / name


def constant_model(path: Path, n_outputs: int) -> Path:
    """An ONNX model that answers 1, 2, … times the mean of its input."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    row = np.arange(1, n_outputs + 1, dtype=np.float32)[None]
    nodes = [
        helper.make_node("Flatten", ["input_1"], ["flat"]),
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "row"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "stand-in",
        [helper.make_tensor_value_info("input_1", kind, None)],
        [helper.make_tensor_value_info("output", kind, None)],
        [onnx.numpy_helper.from_array(row, "row")],
    )
    opsets = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


class Listening(DnsmosP808):
    """Remembers what the network is fed."""

    def _run(self, feed: NDArray[np.float32]) -> NDArray[np.float32]:
        self.fed = [*getattr(self, "fed", []), feed]
        return super()._run(feed)


def test_p808_sees_librosas_spectrogram(tmp_path: Path) -> None:
    """A matrix in float32 against a float64 transform: 0.01 dB down to the floor of -80."""
    teacher = Listening(constant_model(tmp_path / "p808.onnx", 1))
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


def test_p808_does_not_hear_levels(tmp_path: Path) -> None:
    teacher = DnsmosP808(constant_model(tmp_path / "p808.onnx", 1))
    assert teacher(speech(3) * np.float32(0.05)) == pytest.approx(teacher(speech(3)), abs=1e-4)


@pytest.mark.parametrize(("seconds", "count"), [(5, 1), (9.01, 1), (10, 1), (11, 2), (13, 4)])
def test_windows_as_published(tmp_path: Path, seconds: float, count: int) -> None:
    """floor(length - 9.01) + 1 windows of whole seconds, once a clip is long enough."""
    teacher = Listening(constant_model(tmp_path / "p808.onnx", 1))
    noise = np.random.default_rng(0).standard_normal(int(seconds * 16_000)).astype(np.float32)
    teacher(noise)
    assert len(teacher.fed) == count


def test_p835_is_mapped_as_published(tmp_path: Path) -> None:
    """The third output, by the polynomial of DNS-Challenge; one window, so that means agree."""
    teacher = DnsmosP835(constant_model(tmp_path / "p835.onnx", 3))
    level = np.full(144_160, 0.9, np.float32)
    raw = 3 * 0.9
    wanted = -0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535
    assert teacher(level) == pytest.approx(wanted, abs=1e-3)


def test_dnsmos_pro_is_the_published_network() -> None:
    """Folded norms and no fast paths: 1e-4 MOS, on what the published module reads itself."""
    path = published("dnsmospro_bvcc.pt")
    module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    teacher = DnsmosPro(path)
    waveform = speech(4)
    levelled = waveform * (10 ** (-26 / 20) / np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
    magnitude = np.abs(
        librosa.stft(levelled, n_fft=320, hop_length=160, win_length=320, pad_mode="reflect")
    )
    spectrum = np.log10(np.clip(magnitude, 1e-7, 1e7)).T.astype(np.float32)
    with torch.inference_mode():
        wanted = float(module(torch.from_numpy(spectrum)[None, None])[0, 0])
    assert teacher(waveform) == pytest.approx(wanted, abs=1e-4)
    assert teacher(waveform * np.float32(0.1)) == pytest.approx(wanted, abs=1e-3)
    assert DnsmosPro(path, reduced=True)(waveform) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize(
    ("teacher", "name"), [(DnsmosP808, "dnsmos_p808.onnx"), (DnsmosP835, "dnsmos_p835.onnx")]
)
def test_published_teachers_know_noise(teacher: type, name: str) -> None:
    judge = teacher(published(name))
    clean = speech(4)
    noise = np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    assert 1 < judge(clean + np.float32(0.1) * noise) < judge(clean) - 0.3 < 5


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
