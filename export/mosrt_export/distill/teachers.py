"""Opens teachers: bundles, and published DNSMOS models.

A teacher is what scores a clip in all of its domains. Its file decides its labels, so these are
kept under the file's SHA-256. An ONNX file of DNSMOS becomes a bundle first, as by
`mosrt export dnsmos`.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

import mosrt
from mosrt._arrays import Float32Array
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.errors import AudioError, MosrtError
from mosrt.host.files import sha256_of
from mosrt_export.dnsmos import export_dnsmos
from mosrt_export.graphs.graph import FRAMES
from mosrt_export.parity import audio_sources

__all__ = ["DnsmosPro", "OpenTeacher", "Scores", "Teacher", "TeacherError", "find_teachers"]

Scores: TypeAlias = Callable[[Float32Array], Sequence[float]]
"""Maps a waveform (samples,) at 16 kHz to the scores of a teacher's domains."""
Hinted: TypeAlias = Callable[[Float32Array], tuple[Sequence[float], Float32Array]]
"""As `Scores`, and what the teacher knows of each frame, (frames, size); nan if it scores none."""


class TeacherError(MosrtError, ValueError):
    """A teacher cannot be used; the message names it and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A model that labels clips.

    Attributes:
        name: Name of the model or file, after "DOMAIN=" if renamed.
        path: Its bundle or file.
        domains: Names of its labels, the default score first.
        sha256: Tells it from other teachers.
        n_bytes: Size of its graphs and weights.
        renamed: Whether only the default score is used, under another name.
        published: Whether it is the bundle of a file that `mosrt export dnsmos` takes.
        hint_size: Size of what it knows of each frame, if its bundle has an output "frames".
    """

    name: str
    path: Path
    domains: tuple[str, ...]
    sha256: str
    n_bytes: int
    renamed: bool = False
    published: bool = False
    hint_size: int = 0

    def open(self, *, provider: str = "cpu", reduced: bool = False) -> OpenTeacher:
        """Opens the teacher on one thread; a bundle runs on `provider`, as for `mosrt.load`."""
        if self.path.suffix == _PRO:
            model = DnsmosPro(self.path, reduced=reduced)
            return OpenTeacher(lambda waveform: [model(waveform)])
        manifest = Bundle.open(self.path).manifest
        # A published script scores whatever it is given, such as clipped speech.
        policy: Literal["warn", "nan"] = "warn" if self.published else "nan"
        scorer = mosrt.load(self.path, provider=provider, threads=1, on_bad_audio=policy)

        def scores(waveform: Float32Array) -> list[float]:
            with _without_warnings():
                score = scorer.score(waveform, SAMPLE_RATE_HZ)
            if self.renamed:
                return [score.mos]
            return [score.domains.get(domain, float("nan")) for domain in self.domains]

        def hinted(waveform: Float32Array) -> tuple[list[float], Float32Array]:
            names = [manifest.default_domain] if self.renamed else self.domains
            try:
                outputs = scorer.features(waveform, SAMPLE_RATE_HZ)
            except AudioError:
                missing = np.full((1, self.hint_size), np.nan, np.float32)
                return [float("nan")] * len(names), missing
            mos = outputs[manifest.outputs[0].name].mean(axis=(0, 1)).tolist()
            found = dict(zip(manifest.domains, mos, strict=True))
            # The segment goes on with zeros after a shorter waveform.
            frames = outputs[FRAMES][0, 0]
            share = 1.0 if manifest.ssl is None else len(waveform) / manifest.ssl.crop_samples
            return [found[name] for name in names], frames[: round(len(frames) * share)]

        return OpenTeacher(scores, hinted if self.hint_size else None)


@dataclass(frozen=True, slots=True)
class OpenTeacher:
    """A teacher that is ready to label; `hinted` is None if it knows nothing of frames."""

    scores: Scores
    hinted: Hinted | None = None


SAMPLE_RATE_HZ: Final = 16_000
_PRO: Final = ".pt"
_LOG: Final = logging.getLogger("mosrt")


def find_teachers(references: Sequence[str]) -> list[Teacher]:
    """Returns the teachers that a command names.

    Args:
        references: For each the path of a bundle, of a DNSMOS ONNX file or of a DNSMOS Pro file
            `.pt`, or the name of an embedded model. NAME=REFERENCE uses the teacher's default score
            only, and calls it NAME.

    Raises:
        BundleError: A bundle or file cannot be used.
        TeacherError: A teacher gives no MOS, or two have a domain of the same name.
    """
    teachers = [_find(reference) for reference in references]
    counts = Counter(domain for teacher in teachers for domain in teacher.domains)
    for reference, teacher in zip(references, teachers, strict=True):
        for domain in teacher.domains:
            if counts[domain] > 1:
                raise TeacherError(
                    f"two teachers have a domain {domain!r}; name the default score of "
                    f"{reference}, as in mine={reference.rpartition('=')[2]}"
                )
    return teachers


def _find(reference: str) -> Teacher:
    label, _, place = (
        reference.rpartition("=") if not Path(reference).exists() else ("", "", reference)
    )
    path = Path(place)
    if path.suffix in (".onnx", _PRO) and not path.is_file():
        raise TeacherError(f"{place}: there is no such file")
    if path.suffix == _PRO:
        DnsmosPro(path)
        teacher = Teacher(name=path.name, path=path, domains=("mos",), sha256=sha256_of(path),
                          n_bytes=path.stat().st_size)  # fmt: skip
    elif path.suffix == ".onnx":
        teacher = dataclasses.replace(
            _bundle(str(_converted(path))), name=path.name, sha256=sha256_of(path), published=True
        )
    else:
        teacher = _bundle(place)
    if label:
        name = f"{label}={teacher.name}"  # others may be called the same
        return dataclasses.replace(teacher, name=name, domains=(label,), renamed=True)
    return teacher


def _bundle(place: str) -> Teacher:
    """A bundle, or an embedded model, as a teacher."""
    bundle = Bundle.open(find_bundle(place))
    manifest = bundle.manifest
    if manifest.uncertainty is not None:
        raise TeacherError(
            f"{place}: {manifest.name} measures uncertainty and gives no MOS; pass a model "
            "that predicts MOS"
        )
    first = manifest.default_domain
    files = [
        file
        for member in bundle.variant("fp32").members
        for file in (member.graph, member.weights)
        if file is not None
    ]
    digest = hashlib.sha256("".join(file.sha256 for file in files).encode())
    return Teacher(
        name=manifest.name,
        path=bundle.path,
        domains=(first, *(name for name in manifest.domains if name != first)),
        sha256=digest.hexdigest(),
        n_bytes=sum(file.bytes for file in files),
        hint_size=sum(int(each.shape[-1]) for each in manifest.outputs if each.name == FRAMES),
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences warnings about clips, which are degraded on purpose."""
    level = _LOG.level
    _LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _LOG.setLevel(level)


@functools.cache
def _converted(file: Path) -> Path:
    """The bundle of a DNSMOS file, which lasts as long as this process."""
    folder = TemporaryDirectory(prefix="mosrt-dnsmos-")
    atexit.register(folder.cleanup)
    bundle = Path(folder.name, "bundle")
    export_dnsmos(file, bundle, clips=audio_sources(None), step=lambda _: nullcontext())
    return bundle


class DnsmosPro:
    """DNSMOS Pro (Cumlin et al., Interspeech 2024; MIT), from its published TorchScript file.

    Its scores depend on level, so that the level is set to -26 dBFS RMS first. `reduced` runs the
    convolutions in bfloat16, which is several times faster on processors that support it, and
    changes scores by about 0.01.
    """

    _LEVEL_DB: Final = -26.0
    _N_FFT: Final = 320
    _HOP: Final = 160
    _LENGTH: Final = 160_000  # trained on 10 s

    def __init__(self, path: Path, *, reduced: bool = False) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the file is what was published
                published = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            self._convolutions = _folded(published.state_dict())
            self._head = published._head
        except (AttributeError, KeyError, ValueError, RuntimeError) as exc:
            raise TeacherError(f"{path}: not a DNSMOS Pro model ({exc})") from exc
        self._reduced = reduced
        self._window = np.hanning(self._N_FFT + 1)[:-1].astype(np.float32)

    def __call__(self, waveform: Float32Array) -> float:
        """Returns the mean of the predicted MOS distribution of a waveform (samples,) at 16 kHz."""
        rms = max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-9)
        levelled = waveform * np.float32(10 ** (self._LEVEL_DB / 20) / rms)
        # The published script repeats clips up to 10 s. Because of the maximum pooling this changes
        # scores of 5 s clips by 0.2 at most, and takes twice as long.
        padded = np.pad(levelled[: self._LENGTH], self._N_FFT // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._N_FFT)[:: self._HOP]
        magnitude = np.abs(np.fft.rfft(frames * self._window, axis=1))
        spectrum = np.log10(np.clip(magnitude, 1e-7, 1e7)).astype(np.float32)
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=self._reduced):
                maps = self._convolutions(torch.from_numpy(spectrum)[None, None])
            return float(self._head(maps.amax((2, 3)).float())[0, 0]) * 2 + 3


def _folded(state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    """Returns the convolutions of DNSMOS Pro with batch norm folded in: several times faster."""
    layers: list[nn.Module] = []
    for i in range(4):
        prefix = f"_encoder.encoder.{i}."
        weight, bias = state[f"{prefix}0.weight"], state[f"{prefix}0.bias"]
        gain, shift, mean, variance = (
            state[f"{prefix}1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / torch.sqrt(variance + 1e-5)
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        layer.weight.data = weight * scale[:, None, None, None]
        layer.bias = nn.Parameter((bias - mean) * scale + shift)
        layers += [layer, nn.ReLU()]
        if i == 1:
            layers.append(nn.MaxPool2d(3))
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)
