"""What all tests share: versions in the header, a cache of their own, sample clips, bundles."""

import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import HealthCheck, settings

import mosrt
from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt.bundle.front_end_spec import MelSpec

TESTS = Path(__file__).parent
DATA = TESTS / "data"
STANDINS = TESTS / "standins"
GOLDEN = TESTS / "golden" / "utmosv2"
HANG_S = 900.0  # what has not ended by then hangs, on a machine of any speed and load

UTMOSV2_MEL = MelSpec(
    tensor="images",
    crop_samples=22_400,
    n_crops=2,
    n_fft=4096,
    hop_length=32,
    n_mels=512,
    windows=(4096, 2048, 1024, 512),
    f_min_hz=0.0,
    f_max_hz=8000.0,
    floor_db=80.0,
    image_height=512,
    image_width=512,
)


# The same examples in every run, however slow the machine is.
settings.register_profile(
    "mosrt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mosrt")


def noise(n_samples: int) -> npt.NDArray[np.float32]:
    """White noise (n_samples,) at -20 dBFS, another for each length."""
    return np.random.default_rng(n_samples).normal(0, 0.1, n_samples).astype(np.float32)


def pytest_report_header() -> list[str]:
    names = [
        "numpy",
        "onnxruntime",
        "openvino",
        "soundfile",
        "soxr",
        "click",
        "torch",
        "timm",
        "transformers",
    ]
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    return [", ".join(versions), f"providers: {onnxruntime.get_available_providers()}"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache directory of this test run and its processes, instead of the user's."""
    directory = tmp_path_factory.mktemp("cache") / "mosrt"
    before = os.environ.get("MOSRT_CACHE")
    os.environ["MOSRT_CACHE"] = str(directory)
    yield directory
    if before is None:
        del os.environ["MOSRT_CACHE"]
    else:
        os.environ["MOSRT_CACHE"] = before


@dataclass(frozen=True)
class GoldenCase:
    """One case of the reference implementation; see tests/golden/README.md."""

    name: str
    waveform: npt.NDArray[np.int16]
    plan: mosrt.CropPlan
    domain_index: int
    arrays: dict[str, npt.NDArray[np.float64]]


@pytest.fixture(params=["plain_long", "mixup_long", "plain_short_tiled"])
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    with np.load(GOLDEN / f"{request.param}.npz") as case:
        arrays = dict(case)
    mixed = arrays["mix_starts"].size > 0
    return GoldenCase(
        name=request.param,
        waveform=arrays["waveform"],
        plan=mosrt.CropPlan(
            arrays["ssl_start"][None],
            arrays["spec_starts"][None],
            arrays["mix_starts"][None] if mixed else None,
            arrays["mix_lambdas"][None] if mixed else None,
        ),
        domain_index=int(arrays["domain"].argmax()),
        arrays=arrays,
    )


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A bundle of two small random networks with UTMOSv2's interface."""
    return STANDINS / "tiny"


@pytest.fixture(scope="session")
def tiny_wav2vec() -> Path:
    """A bundle of a small random wav2vec v1 model, which scores by its uncertainty."""
    return STANDINS / "tiny_wav2vec"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A path that `make` writes to, in one of the processes that share a test run.

    What takes long to export is exported by whichever needs it first; the others wait for it.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the one that all of them see
    made = folder / f"shared-{name}"
    with (folder / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            part = folder / f"part-{name}"
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(made)
    return made


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a student with random weights, whose checkpoint `student.pt` is beside it."""
    from mosrt_export.distill.train.exporting import export_student
    from mosrt_export.parity import audio_sources
    from tests.standins.nano import random_student

    def export(folder: Path) -> None:
        folder.mkdir()
        random_student().save(folder / "student.pt")
        clips = audio_sources(DATA / "flite_slt_16k_mono.wav")
        export_student(
            folder / "student.pt", folder / "student", clips=clips, card="student-card.md"
        )

    return made_once(tmp_path_factory, "student", export) / "student"


@pytest.fixture(scope="session")
def clips() -> list[Path]:
    found = sorted(p for p in DATA.iterdir() if p.suffix in AUDIO_SUFFIXES)
    assert len(found) >= 7
    return found


@pytest.fixture(scope="session")
def speech() -> npt.NDArray[np.float32]:
    """Six seconds of synthetic speech at 16 kHz, (samples,)."""
    with np.load(GOLDEN / "plain_long.npz") as case:
        waveform: npt.NDArray[np.float32] = case["waveform"].astype(np.float32) / 32_768
    return np.concatenate([waveform, waveform])[:96_000]
