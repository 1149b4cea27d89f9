"""Grids that leave out what is no speech, as a manifest can say."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from click.testing import CliRunner

import mosrt
from mosrt.audio.recording import Recording
from mosrt.audio.sources import ArraySource
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.front_end_spec import GridSpec, SpeechSpec
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.writer import updated_bundle, write_manifest
from mosrt.cli.main import main
from tests.conftest import DATA
from tests.standins.segments import write_segments_bundle

Array = npt.NDArray[np.float32]
RATE_HZ = 16_000
RULE = SpeechSpec(range_db=40.0, floor_dbfs=-55.0, least_range_db=20.0, margin_s=0.1, min_share=0.3)
EXACT = dataclasses.replace(RULE, margin_s=0.0)


def with_rule(source: Path, out: Path, rule: SpeechSpec | None) -> Path:
    with updated_bundle(source, out) as directory:
        manifest = Bundle.open(directory).manifest
        grid = dataclasses.replace(manifest.grid, speech=rule)
        write_manifest(directory, dataclasses.replace(manifest, grid=grid))
    return out


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("segments")
    return write_segments_bundle(directory / "bundle", grid=GridSpec(speech=EXACT))


@pytest.fixture(scope="module")
def speech() -> Array:
    samples, rate_hz = soundfile.read(DATA / "flite_slt_16k_mono.wav", dtype="float32")
    assert rate_hz == RATE_HZ
    return np.asarray(samples, np.float32)


def zeros(seconds: float) -> Array:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def noise(seconds: float, level_dbfs: float = -20.0, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).normal(0, 10 ** (level_dbfs / 20), zeros(seconds).size)
    return values.astype(np.float32)


def frames(samples: Array, rule: SpeechSpec = RULE) -> list[bool]:
    found: list[bool] = rule.frames(samples.reshape(-1, 320).var(axis=1, dtype=np.float64)).tolist()
    return found


def test_silence_and_room_noise_are_no_speech() -> None:
    for quiet in (zeros(2), noise(2, -60, seed=1), zeros(2) + np.float32(0.02)):
        assert frames(np.concatenate([quiet, noise(1), quiet])) == (
            [False] * 100 + [True] * 50 + [False] * 100
        )


@pytest.mark.parametrize("level_dbfs", [-40.0, -30.0, -10.0])
def test_first_and_last_speech_hardly_depend_on_the_level(speech: Array, level_dbfs: float) -> None:
    speech = speech[: speech.size // 320 * 320]
    gain = 10 ** (level_dbfs / 20) / np.sqrt(speech.var())
    wanted, found = (np.flatnonzero(frames(x)) for x in (speech, np.float32(gain) * speech))
    assert abs(wanted[0] - found[0]) <= 5
    assert abs(wanted[-1] - found[-1]) <= 5


@pytest.mark.parametrize("snr_db", [-5.0, 5.0, 15.0])
def test_speech_in_noise_is_kept(speech: Array, snr_db: float) -> None:
    speech = speech[: speech.size // 320 * 320]
    level_dbfs = 10 * np.log10(speech.var()) - snr_db
    noisy = speech + noise(speech.size / RATE_HZ, level_dbfs)
    assert all(frames(noisy))


def test_clicks_are_no_speech() -> None:
    clicks = zeros(4)
    clicks[[8_000, 30_000, 50_000]] = 1.0
    found = np.array(frames(np.concatenate([clicks, noise(1, -30)])))
    assert found.sum() == 50


def test_without_speech_all_counts() -> None:
    click = zeros(1)
    click[5_000] = 0.5
    for samples in (zeros(1), noise(1, -90), click):
        assert all(frames(samples))


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_a_recording_is_trimmed_alike_in_memory_and_as_a_stream(rate_hz: int) -> None:
    parts = [noise(1.0, -80), noise(2.0), zeros(3.0), noise(1.5), zeros(1.234)]
    samples = np.concatenate(parts)
    read = []
    for kept_s in (600.0, 0.0):
        recording = Recording(
            ArraySource(samples, rate_hz), RATE_HZ, kept_s=kept_s, speech=RULE, remove_silence=False
        )
        recording.trim()
        n_samples = recording.n_samples
        (whole,) = recording.chunks([(0, n_samples)])
        crops, short = recording.gather(
            [(np.array([0, 777, n_samples - 1_000]), 1_000), (np.array([3]), n_samples + 5)]
        )
        np.testing.assert_array_equal(crops[1], whole[777:1_777])
        np.testing.assert_array_equal(short[0][: n_samples - 3], whole[3:])
        assert recording.speech is not None
        read.append((recording.start, whole, recording.speech.frames))
    for first, second in zip(*read, strict=True):
        np.testing.assert_array_equal(first, second)
    scale = RATE_HZ / rate_hz
    start, whole, mask = read[0]
    assert start == pytest.approx((1.0 * scale - 0.1 / 1) * RATE_HZ, abs=700)
    assert len(whole) == pytest.approx((6.5 * scale + 0.2) * RATE_HZ, abs=1_400)
    assert len(mask) == -(-len(whole) // 320)


def test_silence_around_speech_does_not_change_the_score(segments: Path, speech: Array) -> None:
    """To the bit, if the rule keeps nothing around speech."""
    with mosrt.load(segments, threads=1) as scorer:
        wanted = scorer.score(speech, RATE_HZ)
        for before, after in ((0.0203, 0.0), (3.0777, 0.5), (0.0, 9.0), (40.0, 40.0)):
            found = scorer.score(np.concatenate([zeros(before), speech, zeros(after)]), RATE_HZ)
            assert (found.mos, found.low, found.views) == (wanted.mos, wanted.low, wanted.views)
            moved = np.array(found.windows) - np.array(wanted.windows)
            assert moved == pytest.approx(np.full(moved.shape, before), abs=1e-4)
            assert found.duration_s == pytest.approx(wanted.duration_s + before + after, abs=1e-4)


def test_windows_tell_where_the_views_are(segments: Path) -> None:
    samples = np.concatenate([zeros(5), noise(6), zeros(20), noise(4, seed=2), zeros(5)])
    with mosrt.load(segments, threads=1) as scorer:
        score = scorer.score(samples, RATE_HZ)
    spans = np.array(score.windows)
    assert spans.min() == pytest.approx(5.0, abs=0.02)  # frames begin anywhere
    assert spans.max() == pytest.approx(35.0, abs=0.02)
    speech_s = np.clip(np.minimum(spans[:, 1], 11) - spans[:, 0], 0, None)
    speech_s += np.clip(spans[:, 1] - np.maximum(spans[:, 0], 31), 0, None)
    assert np.all(speech_s >= 0.3 * 3 - 0.02)
    assert score.n_views < 15


def test_other_plans_see_all_of_the_recording(tiny: Path, tmp_path: Path) -> None:
    samples = np.concatenate([zeros(4), noise(3), zeros(4)])
    plan = mosrt.CropPlan(np.array([5, 70_000]), np.array([[9, 60_000], [0, 100]]))
    with (
        mosrt.load(tiny, threads=1) as plain,
        mosrt.load(with_rule(tiny, tmp_path / "rule", RULE), threads=1) as ruled,
    ):
        for other in ("reference:3", "paper:1", plan):
            wanted = plain.score(samples, RATE_HZ, plan=other)
            found = ruled.score(samples, RATE_HZ, plan=other)
            assert (found.views, found.windows) == (wanted.views, wanted.windows)
        grid = ruled.score(samples, RATE_HZ)
        assert grid.views != plain.score(samples, RATE_HZ).views
        assert np.array(grid.windows).min() == pytest.approx(3.9, abs=0.02)
        assert np.array(grid.windows).max() == pytest.approx(7.1, abs=0.02)
        # A recording that has no speech has views.
        assert ruled.score(zeros(5), RATE_HZ).views == plain.score(zeros(5), RATE_HZ).views
        quiet = noise(5, -90)
        assert ruled.score(quiet, RATE_HZ).n_views == plain.score(quiet, RATE_HZ).n_views
        assert ruled.score(samples, RATE_HZ, views=7).n_views == 7 * len(
            plain.manifest.variants["fp32"].members
        )


def test_the_manifest_tells_the_rule(segments: Path) -> None:
    manifest = Bundle.open(segments).manifest
    plain: dict[str, Any] = json.loads(json.dumps(manifest.to_dict()))
    assert plain["grid"]["speech"] == dataclasses.asdict(EXACT)
    assert Manifest.from_dict(plain) == manifest
    shown = CliRunner().invoke(main, ["info", str(segments)], catch_exceptions=False).stdout
    lines = dict(line.split("  ", 1) for line in shown.splitlines() if "  " in line)
    assert "within 40 dB of the loudest 0.2 s" in lines["speech"]
    del plain["grid"]["speech"]
    assert "speech" not in Manifest.from_dict(plain).to_dict()["grid"]
    bad = {**plain["grid"], "speech": {**dataclasses.asdict(RULE), "min_share": 2}}
    with pytest.raises(mosrt.BundleError, match=r"grid\.speech\.min_share"):
        Manifest.from_dict({**plain, "grid": bad})
    uncertain = Bundle.open(Path(mosrt.__file__).parent / "models" / "nano-uncertainty").manifest
    ruled = dataclasses.replace(uncertain, grid=GridSpec(speech=RULE))
    with pytest.raises(mosrt.BundleError, match="predict MOS"):
        Manifest.from_dict(json.loads(json.dumps(ruled.to_dict())))
