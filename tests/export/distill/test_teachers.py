"""Tests DNSMOS Pro against the published module, and how teachers are named."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from torch import nn

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.errors import MosrtError
from mosrt_export.distill.teachers import DnsmosPro, TeacherError, find_teachers
from mosrt_export.dnsmos import export_dnsmos
from mosrt_export.parity import audio_sources
from tests.conftest import DATA
from tests.standins.dnsmos import P808_SHAPE, P835_SHAPE, dnsmos_model
from tests.standins.nano import speech
from tests.standins.segments import write_segments_bundle

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


@pytest.mark.filterwarnings("error")
def test_the_published_format_is_no_cause_for_a_warning(published: Path) -> None:
    DnsmosPro(published)


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_a_wrong_file_is_named(suffix: str, tmp_path: Path) -> None:
    wrong = tmp_path / f"wrong.{suffix}"
    wrong.write_bytes(b"neither of them")
    with pytest.raises(MosrtError, match=rf"wrong\.{suffix}: not a DNSMOS"):
        find_teachers([str(wrong)])
    with pytest.raises(MosrtError, match=rf"none\.{suffix}: there is no such file"):
        find_teachers([str(tmp_path / f"none.{suffix}")])


def test_another_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    linear = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))  # type: ignore[no-untyped-call]
    linear.save(str(path))
    with pytest.raises(TeacherError, match=r"other\.pt: not a DNSMOS Pro model"):
        DnsmosPro(path)


def test_a_teacher_gives_its_domains(published: Path) -> None:
    nano, pro = find_teachers(["nano", f"pro={published}"])
    assert nano.domains == ("overall", "bvcc", "p808", "fidelity", "anchor")
    assert pro.domains == ("pro",)
    waveform = speech(4)
    with mosrt.load("nano", threads=1) as scorer:
        score = scorer.score(waveform, 16_000)
    assert list(nano.open().scores(waveform)) == [score.domains[name] for name in nano.domains]
    assert pro.open().scores(waveform) == [DnsmosPro(published)(waveform)]
    (renamed,) = find_teachers(["quality=nano"])
    assert renamed.domains == ("quality",)
    first, second = find_teachers(["a=nano", "b=nano"])
    assert first.name != second.name  # a card lists both
    assert renamed.open().scores(waveform) == [score.mos]
    assert renamed.sha256 == nano.sha256 != pro.sha256
    # The FP32 graph and its weights.
    (manifest,) = (Bundle.open(nano.path).manifest,)
    (member,) = manifest.variants["fp32"].members
    assert member.weights is not None
    assert nano.n_bytes == member.graph.bytes + member.weights.bytes


def test_a_teacher_may_know_something_of_each_frame(tmp_path: Path) -> None:
    """Of those that the waveform fills, with the scores that it gives without them."""
    bundle = write_segments_bundle(tmp_path / "frames", frames=True)
    (teacher,), (plain,) = find_teachers([str(bundle)]), find_teachers(["nano"])
    assert (teacher.hint_size, plain.hint_size) == (8, 0)
    assert plain.open().hinted is None
    opened = teacher.open()
    assert opened.hinted is not None
    waveform = speech(2)
    scores, frames = opened.hinted(waveform)
    np.testing.assert_allclose(scores, opened.scores(waveform), atol=1e-5)
    assert frames.shape == (20, 8)  # each 0.1 s
    assert np.ptp(frames, axis=0).max() > 0.1
    _, first = opened.hinted(waveform[:16_000])
    np.testing.assert_allclose(first[:9], frames[:9], atol=1e-5)
    nothing, unknown = opened.hinted(np.zeros(0, np.float32))
    assert np.isnan(nothing).all()
    assert np.isnan(unknown).all()
    (renamed,) = find_teachers([f"mine={bundle}"])
    hinted = renamed.open().hinted
    assert hinted is not None
    assert hinted(waveform)[0] == scores[:1]


def test_dnsmos_files_teach_as_their_bundles_score(tmp_path: Path) -> None:
    """The labels of a file are kept under its own hash, whatever version exports it."""
    p808 = dnsmos_model(tmp_path / "p808.onnx", P808_SHAPE, 1)
    p835 = dnsmos_model(tmp_path / "p835.onnx", P835_SHAPE, 3)
    teachers = find_teachers([str(p808), f"noise={p835}"])
    assert [teacher.domains for teacher in teachers] == [("p808",), ("noise",)]
    assert [teacher.name for teacher in teachers] == ["p808.onnx", "noise=p835.onnx"]
    assert teachers[0].sha256 == hashlib.sha256(p808.read_bytes()).hexdigest()
    segment = np.resize(0.2 * speech(4), 144_160) + np.float32(0.4)
    raw = 3 * float(segment.mean())  # the third output is the overall score
    wanted = -0.06766283 * raw**2 + 1.11546468 * raw + 0.04602535
    (found,) = teachers[1].open().scores(segment)
    assert found == pytest.approx(wanted, abs=1e-4)
    out = tmp_path / "bundle"
    clips, step = audio_sources(DATA / "flite_slt_16k_mono.wav"), lambda _: nullcontext()
    export_dnsmos(p808, out, clips=clips, step=step)
    waveform = speech(4)
    with mosrt.load(out, threads=1) as scorer:
        assert teachers[0].open().scores(waveform) == [scorer.score(waveform, 16_000).mos]


def test_unusable_teachers_are_named(tmp_path: Path) -> None:
    for references, message in (
        (["nano", "nano"], "two teachers have a domain 'overall'; name the default score of nano"),
        (["nano-uncertainty"], "gives no MOS"),
        ([str(tmp_path / "none.onnx")], "none.onnx: there is no such file"),
    ):
        with pytest.raises(TeacherError, match=message):
            find_teachers(references)
    with pytest.raises(MosrtError, match="no such bundle"):
        find_teachers(["nobody"])
