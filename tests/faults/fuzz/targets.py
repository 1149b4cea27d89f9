"""What is fuzzed: for each kind of input, how inputs are made and what may come of them.

An input is bytes, so that one that fails can be kept in `corpus/`. A target's `run` returns if the
input was used or refused properly, and raises anything else.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import soundfile

import mosrt
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.backends import ort
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Manifest
from mosrt.errors import AudioError, BundleError, MosrtError
from tests.standins.quantizable import convolutional, write_bundle

from .mutations import mutated, mutated_json

__all__ = ["TARGETS", "OutsideReadError", "Target"]

STANDINS = Path(__file__).parents[2] / "standins"
_RATE_HZ = 16_000


class OutsideReadError(Exception):
    """Something outside the bundle was read, or would have been."""


class Target(Protocol):
    """One kind of input."""

    def make(self, rng: random.Random) -> bytes:
        """A new input."""
        ...

    def run(self, data: bytes) -> bool:
        """Uses an input; whether it was accepted."""
        ...


class Audio:
    """The bytes of audio files, read from memory and from a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seeds = [_sound(*each) for each in _containers()]

    def make(self, rng: random.Random) -> bytes:
        return mutated(rng.choice(self._seeds), self._seeds, rng)

    def run(self, data: bytes) -> bool:
        file: Any = data
        if len(data) % 8 == 0:
            file = self._folder / "clip"
            file.write_bytes(data)
        try:
            recording = Recording(FileSource(file), _RATE_HZ)
            n = 0
            for chunk in recording.chunks([(0, recording.n_samples)]):
                n += chunk.size
                assert np.isfinite(chunk).all()
            assert n == recording.n_samples
        except AudioError:
            return False
        assert math.isfinite(recording.duration_s)
        return True


class Arrays:
    """Arrays of any shape, dtype and content."""

    _DTYPES = ("f4", "f8", "f2", "i2", "i4", "i8", "u1", "c8", "?", "O", "U3", ">f4", "M8[s]")
    _FILLS = (0.0, 1e-30, 0.1, 1.0, 3.0, 1e4, 1e18, 1e38, math.nan, math.inf, -math.inf)

    def __init__(self, folder: Path) -> None:
        bundle = _tiny_bundle(folder)
        self._scorer = mosrt.load(bundle, threads=1, cache=False, on_bad_audio="error")

    def make(self, rng: random.Random) -> bytes:
        n = rng.choice((0, 1, 100, 1600, 4000, 8000, 16_000))
        shape = rng.choice(([n], [n], [n], [2, n], [n, 2], [1, n], [], [2, 2, n]))
        hostile = rng.random() < 0.5  # the other half is ordinary but for its level
        rate = rng.choice((0, 1, -1, 7999, 8000, 16_000, 44_100, 1e6, 1e300, math.nan, "x", None))
        spec = {
            "shape": shape,
            "dtype": rng.choice(self._DTYPES) if hostile else "f4",
            "fill": rng.choice(self._FILLS if hostile else (0.01, 0.1, 0.3)),
            "spike": rng.choice((None, *self._FILLS)) if hostile else None,
            "rate": rate if hostile and rng.random() < 0.3 else rng.choice((16_000, 24_000)),
            "strided": rng.random() < 0.2,
            "seed": rng.randrange(1000),
        }
        return json.dumps(spec).encode()

    def run(self, data: bytes) -> bool:
        spec = json.loads(data)
        rng = np.random.default_rng(spec["seed"])
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, TypeError):
            values = rng.normal(size=spec["shape"]) * spec["fill"]
            if spec["spike"] is not None and np.size(values):
                values.flat[0] = spec["spike"]
            values = np.asarray(values).astype(spec["dtype"])
            if spec["strided"] and values.ndim:
                values = values[::-2]
        try:
            score = self._scorer.score(values, spec["rate"])
        except (AudioError, TypeError, ValueError) as exc:
            assert str(exc)
            return False
        assert math.isfinite(score.mos)
        return True


class Manifests:
    """Manifests with hostile values, keys too many and too few, and damaged JSON."""

    def __init__(self, folder: Path) -> None:
        self._bundle = folder / "bundle"
        self._seeds = []
        for name in ("tiny", "tiny_wav2vec"):
            self._seeds.append(json.loads((STANDINS / name / "manifest.json").read_text()))
        shutil.copytree(STANDINS / "tiny", self._bundle)

    def make(self, rng: random.Random) -> bytes:
        text = json.dumps(mutated_json(rng.choice(self._seeds), rng)).encode()
        return mutated(text, [text], rng) if rng.random() < 0.1 else text

    def run(self, data: bytes) -> bool:
        try:
            if len(data) % 16 == 0:
                (self._bundle / "manifest.json").write_bytes(data)
                bundle = Bundle.open(self._bundle)
                bundle.verify()
                manifest = bundle.manifest
            else:
                manifest = Manifest.from_dict(json.loads(data))
        except BundleError:
            return False
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return False  # of json.loads above
        again = json.loads(json.dumps(manifest.to_dict()))
        assert Manifest.from_dict(again).to_dict() == manifest.to_dict()
        return True


class Zips:
    """Zipped bundles, stored and deflated."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        bundle = _tiny_bundle(folder)
        self._seeds = []
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", method) as archive:
                for file in sorted(bundle.iterdir()):
                    archive.write(file, file.name)
            self._seeds.append(stream.getvalue())

    def make(self, rng: random.Random) -> bytes:
        data = rng.choice(self._seeds)
        if rng.random() < 0.5:
            return mutated(data, self._seeds, rng)
        # The directory at the end is where names, sizes and methods are.
        cut = len(data) - 600
        return data[:cut] + mutated(data[cut:], self._seeds, rng)

    def run(self, data: bytes) -> bool:
        path = self._folder / "bundle.zip"
        path.write_bytes(data)
        try:
            bundle = Bundle.open(path)
            bundle.model_card()
            bundle.verify()
            variant = next(iter(bundle.manifest.variants.values()))
            with bundle.extracted(variant):
                pass
        except BundleError:
            return False
        return True


class Graphs:
    """ONNX files that a bundle vouches for: damaged, or with weights in files of other places."""

    _PLACES = (
        "../secret.bin", "{outside}/secret.bin", "link.bin", "a/../../secret.bin", "unlisted.bin",
        "./../secret.bin", "bundle/../../secret.bin", "/proc/self/environ",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._bundle = _tiny_bundle(folder)
        self._file = next(self._bundle.glob("*.onnx"))
        self._manifest = json.loads((self._bundle / "manifest.json").read_text())
        self._seed = self._file.read_bytes()
        model = onnx.load(self._file)
        self._weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        for place in ("../secret.bin", "unlisted.bin"):
            (self._bundle / place).write_bytes(self._weights.raw_data)
        (self._bundle / "link.bin").symlink_to(self._bundle.parent / "secret.bin")
        self._model = model

    def make(self, rng: random.Random) -> bytes:
        if rng.random() < 0.7:
            return mutated(self._seed, [self._seed], rng)
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for tensor in model.graph.initializer:
            if tensor.name == self._weights.name:
                place = rng.choice(self._PLACES).format(outside=self._bundle.parent)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=place)
                if rng.random() < 0.5:
                    tensor.external_data.add(key="offset", value=rng.choice(("0", "-1", "9" * 30)))
                if rng.random() < 0.2:
                    inner = onnx.helper.make_node("Constant", [], ["extra"], value=tensor)
                    model.graph.node.insert(0, inner)
        return b"outside" + bytes(model.SerializeToString())

    def run(self, data: bytes) -> bool:
        outside = data.startswith(b"outside")
        data = data.removeprefix(b"outside")
        self._file.write_bytes(data)
        graph = self._manifest["variants"]["fp32"]["members"][0]["graph"]
        graph.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        (self._bundle / "manifest.json").write_text(json.dumps(self._manifest))
        noise = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
        try:
            with mosrt.load(self._bundle, threads=1, cache=False) as scorer:
                if outside:
                    raise OutsideReadError(f"weights of another place were loaded: {data[-200:]!r}")
                score = scorer.score(noise, _RATE_HZ)
        except MosrtError:
            return False
        assert math.isfinite(score.mos)
        return True


class Caches:
    """Entries of the cache that were damaged, cut, replaced or removed."""

    def __init__(self, folder: Path) -> None:
        self._bundle = _tiny_bundle(folder)
        self._cache, self._template = folder / "cache", folder / "template"
        # Entries are made of large graphs only, which would take long to copy and to damage.
        setattr(ort, "WORTH_CACHING_BYTES", 0)  # noqa: B010 - it is final
        os.environ["MOSRT_CACHE"] = str(self._template)
        self._noise = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
        for _ in range(2):
            with mosrt.load(self._bundle, threads=1) as scorer:
                self._expected = scorer.score(self._noise, _RATE_HZ).mos
        self._files = [path for path in sorted(self._template.rglob("*")) if path.is_file()]
        assert self._files
        os.environ["MOSRT_CACHE"] = str(self._cache)

    def make(self, rng: random.Random) -> bytes:
        return str(rng.randrange(2**62)).encode()

    def run(self, data: bytes) -> bool:
        rng = random.Random(data)
        shutil.rmtree(self._cache, ignore_errors=True)
        shutil.copytree(self._template, self._cache)
        for original in rng.sample(self._files, rng.choice((1, 1, 2))):
            file = self._cache / original.relative_to(self._template)
            content = mutated(original.read_bytes(), [b"\x00" * 64], rng)
            kind = rng.random()
            if kind < 0.6:
                file.write_bytes(content)
            elif kind < 0.8:  # as a disk does it that loses data: size and time stay
                stamp = file.stat()
                content = content[: stamp.st_size].ljust(stamp.st_size, b"\x00")
                file.write_bytes(content)
                os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            else:
                file.unlink()
                if kind > 0.95:
                    file.mkdir()
                elif kind > 0.9:
                    file.symlink_to(original)
        with mosrt.load(self._bundle, threads=1) as scorer:
            found = scorer.score(self._noise, _RATE_HZ).mos
        assert found == self._expected
        return True


def _containers() -> list[tuple[str, str, int, int]]:
    found = []
    for container in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3"):
        for subtype in soundfile.available_subtypes(container):
            for channels, rate in ((1, 16_000), (2, 44_100)):
                if soundfile.check_format(container, subtype):
                    found.append((container, subtype, channels, rate))
    return found


def _sound(container: str, subtype: str, channels: int, rate_hz: int) -> bytes:
    """A third of a second of noise as a file."""
    rng = np.random.default_rng(rate_hz)
    if subtype == "OPUS":
        rate_hz = 48_000
    if subtype in {"GSM610", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16"}:
        channels = 1
    samples = rng.normal(0, 0.1, (rate_hz // 3, channels)).clip(-1, 1)
    stream = io.BytesIO()
    try:
        soundfile.write(stream, samples, rate_hz, subtype, format=container)
    except (soundfile.LibsndfileError, ValueError):
        return b"RIFF"
    return stream.getvalue()


def _tiny_bundle(folder: Path) -> Path:
    return write_bundle(folder / "bundle", convolutional(n_blocks=1))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "audio": Audio,
    "arrays": Arrays,
    "manifests": Manifests,
    "zips": Zips,
    "graphs": Graphs,
    "caches": Caches,
}
