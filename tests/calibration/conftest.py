"""Recordings to calibrate on, and small bundles."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mosrt.bundle.bundle import Bundle
from mosrt_calibration.clips import Choice, choose
from mosrt_calibration.scoring import ModelUnderTest
from tests.standins.quantizable import (
    RATE_HZ,
    convolutional,
    transformer,
    write_bundle,
)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty buzzes with syllables: short and long, quiet and loud, dark and bright, noisy, dull."""
    directory = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(40):
        n = int(rng.uniform(0.3, 0.8) * RATE_HZ)
        time = np.arange(n) / RATE_HZ
        pitch_hz = rng.uniform(150, 350)
        tilt, top_hz = rng.uniform(0.5, 2.0), rng.uniform(2000, 7800)
        partials = np.arange(1, int(top_hz / pitch_hz))
        voice = (np.sin(2 * np.pi * pitch_hz * time[:, None] * partials) / partials**tilt).sum(1)
        voice *= 0.55 - 0.45 * np.cos(2 * np.pi * rng.uniform(2, 6) * time)
        voice /= np.abs(voice).max()
        noise = 10 ** rng.uniform(-4, -1) * rng.standard_normal(n)
        samples = rng.uniform(0.05, 0.5) * (voice + noise)
        folder = directory / ("clean" if i % 2 else "noisy")
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{i:02}.wav", samples, RATE_HZ)
    return directory


@pytest.fixture(scope="session")
def choice(recordings: Path) -> Choice:
    return choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=8, n_evaluation=16)


def model_of(directory: Path) -> ModelUnderTest:
    return ModelUnderTest(directory=directory, manifest=Bundle.open(directory).manifest)


@pytest.fixture
def conv_model(tmp_path: Path) -> ModelUnderTest:
    return model_of(write_bundle(tmp_path / "conv", convolutional()))


@pytest.fixture
def transformer_model(tmp_path: Path) -> ModelUnderTest:
    return model_of(write_bundle(tmp_path / "transformer", transformer()))
