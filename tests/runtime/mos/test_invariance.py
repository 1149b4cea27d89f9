"""What must not change a score: silence around speech, level, polarity; or a flag says so."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import DEFAULT_MODEL, find_bundle
from mosrt.bundle.front_end_spec import SpeechSpec
from mosrt.bundle.writer import updated_bundle, write_manifest
from tests.conftest import DATA

Array = npt.NDArray[np.float32]
RATE_HZ = 16_000
RULE = SpeechSpec(range_db=30.0, floor_dbfs=-70.0, least_range_db=20.0, margin_s=0.0, min_share=0.3)
MEAN_MOS, MOST_MOS = 0.05, 0.15


@pytest.fixture(scope="module", params=[DEFAULT_MODEL, "nano"])
def scorer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[mosrt.Scorer]:
    """A copy of an embedded model, with the rule that only speech counts."""
    out: Path = tmp_path_factory.mktemp("invariance") / "bundle"
    with updated_bundle(find_bundle(request.param), out) as directory:
        manifest = Bundle.open(directory).manifest
        grid = dataclasses.replace(manifest.grid, speech=RULE)
        write_manifest(directory, dataclasses.replace(manifest, grid=grid))
    with mosrt.load(out, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def speech() -> Array:
    samples, rate_hz = soundfile.read(DATA / "flite_slt_16k_mono.wav", dtype="float32")
    assert rate_hz == RATE_HZ
    return np.asarray(samples, np.float32)


def room(n_samples: int) -> Array:
    """Noise at -60 dBFS."""
    return np.random.default_rng(7).normal(0, 1e-3, n_samples).astype(np.float32)


def versions(speech: Array) -> dict[str, Array]:
    n = speech.size
    silence, noise = np.zeros(n, np.float32), room(n)
    rms = np.sqrt(speech.var())
    return {
        "silence before": np.concatenate([silence, speech]),
        "silence after": np.concatenate([speech, silence]),
        "room noise before": np.concatenate([noise, speech]),
        "room noise after": np.concatenate([speech, noise]),
        "room noise around": np.concatenate([noise[: n // 2], speech, noise[n // 2 :]]),
        "-3 dBFS": speech * np.float32(10 ** (-3 / 20) / np.abs(speech).max()),
        "-40 dBFS": speech * np.float32(10 ** (-40 / 20) / rms),
        "DC": speech + np.float32(0.02),
        "DC below": speech - np.float32(0.02),
        "polarity": -speech,
    }


def test_the_default_score_stays_or_a_flag_says_why(scorer: mosrt.Scorer, speech: Array) -> None:
    wanted = scorer.score(speech, RATE_HZ)
    assert wanted.flags == ()
    moved = {}
    for name, samples in versions(speech).items():
        score = scorer.score(samples, RATE_HZ)
        if name.startswith("DC"):
            assert score.flags == ("dc-offset",)
            continue
        if name == "polarity" and scorer.manifest.name == "distillmos":
            # Not invariant by construction: it reads real and imaginary parts of spectra.
            continue
        moved[name] = abs(score.mos - wanted.mos)
    assert max(moved.values()) <= MOST_MOS, moved
    assert np.mean(list(moved.values())) <= MEAN_MOS, moved
