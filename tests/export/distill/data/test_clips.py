"""Tests that clips depend on seed and number alone, and come in the shares of the recipe."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile as sf
from numpy.typing import NDArray

from mosrt_export.distill.data import clips
from mosrt_export.distill.data.clips import CLIP_SAMPLES, RUNGS, Pool, make_clip, make_ladder
from mosrt_export.distill.data.degradations import DEGRADATIONS
from mosrt_export.distill.data.resyntheses import RESYNTHESES
from mosrt_export.distill.data.speech import SpeechError, find_speakers
from mosrt_export.distill.data.studios import gate_pauses
from mosrt_export.distill.recipe import Recipe
from tests.standins.nano import lag, recordings, small_pool, speech

Float32Array = NDArray[np.float32]


def loudness(waveform: Float32Array) -> float:
    return float(waveform.std())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return small_pool(tmp_path_factory.mktemp("speech"))


def test_a_clip_is_its_seed_and_number(pool: Pool) -> None:
    kinds = {**RESYNTHESES, **DEGRADATIONS}
    seen = set()
    for number in range(10):
        first, same = (make_clip(pool, 3, number, loudness) for _ in range(2))
        assert first.waveform.shape == first.reference.shape == (CLIP_SAMPLES,)
        assert first.waveform.dtype == first.reference.dtype == np.float32
        assert np.isfinite(first.waveform).all()
        assert np.array_equal(first.waveform, same.waveform)
        assert np.array_equal(first.reference, same.reference)
        assert (first.speaker, first.treatment, first.severity) == (
            same.speaker, same.treatment, same.severity
        )  # fmt: skip
        assert first.speaker in {speaker.name for speaker in pool.speakers}
        if first.treatment == "clean":
            assert first.severity == 0
        else:
            assert set(first.treatment.split(" + ")) <= set(kinds)
            assert 0 < first.severity < 1
        seen.add(first.waveform.tobytes())
    assert len(seen) == 10
    other = make_clip(pool, 4, 0, loudness)
    assert other.waveform.tobytes() not in seen


def test_clean_clips_stay_in_time(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean clips are within 0.5 ms of the reference, the delay of a filter."""
    monkeypatch.setattr(clips, "CLEAN_SHARE", 1.0)
    for number in range(8):
        clip = make_clip(pool, 0, number, loudness)
        assert clip.treatment == "clean"
        assert abs(lag(clip.reference, clip.waveform)) <= 8


def test_treatments_come_in_their_shares(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """35 % clean, 33 % one resynthesis, 22 % one degradation, 10 % both; within 4 deviations."""
    plain = speech(0.1)

    def spoken(*_args: object) -> tuple[str, Float32Array]:
        return "anna", plain

    def finish(samples: Float32Array, rng: np.random.Generator) -> Float32Array:
        return samples * np.float32(rng.uniform(0.5, 1))

    def unchanged(samples: Float32Array, _s: float, _rng: np.random.Generator) -> Float32Array:
        return samples

    rated: list[float] = []

    def rate(waveform: Float32Array) -> float:
        rated.append(loudness(waveform))
        return rated[-1]

    monkeypatch.setattr(clips, "_random_speech", spoken)
    monkeypatch.setattr(clips, "restore", lambda samples, _rng: samples)
    monkeypatch.setattr(clips, "vary_studio", finish)
    monkeypatch.setattr(clips, "SILENT_SHARE", 0.0)
    pool = dataclasses.replace(
        pool,
        takes=4,
        resyntheses=dict.fromkeys(RESYNTHESES, unchanged),
        degradations=dict.fromkeys(DEGRADATIONS, unchanged),
    )
    n = 3000
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    chosen = 0
    for number in range(n):
        rated.clear()
        clip = make_clip(pool, 1, number, rate)
        parts = clip.treatment.split(" + ")
        kinds.update(parts)
        if rated:
            # Treatments change nothing here, and nothing else follows the best take.
            chosen += 1
            assert len(rated) == 4
            assert loudness(clip.waveform) == loudness(clip.reference) == max(rated)
        if clip.treatment == "clean":
            found["clean"] += 1
        else:
            names = ["resynthesis" if part in RESYNTHESES else "degradation" for part in parts]
            found[" + ".join(names)] += 1
    shares = {"clean": 0.35, "resynthesis": 0.33, "degradation": 0.22,
              "resynthesis + degradation": 0.10}  # fmt: skip
    assert set(found) == set(shares)
    for name, share in shares.items():
        assert found[name] / n == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
    assert chosen / n == pytest.approx(0.45, abs=4 * np.sqrt(0.45 * 0.55 / n))
    assert set(kinds) == {"clean", *RESYNTHESES, *DEGRADATIONS}


def test_rungs_of_a_ladder_differ_in_severity_alone(pool: Pool) -> None:
    """The treatment of a ladder is the same but for its severity."""
    kinds: Counter[str] = Counter()
    for number in range(6):
        ladder, same = (make_ladder(pool, 3, number, loudness) for _ in range(2))
        assert len(ladder) == len(same) == RUNGS
        for rung, again in zip(ladder, same, strict=True):
            np.testing.assert_array_equal(rung.waveform, again.waveform)
            np.testing.assert_array_equal(rung.reference, ladder[0].waveform)
            assert rung.speaker == ladder[0].speaker
        assert [rung.treatment for rung in ladder] == ["clean", *[ladder[1].treatment] * 3]
        severities = [rung.severity for rung in ladder]
        assert severities[0] == 0
        assert [int(3 * severity) for severity in severities[1:]] == [0, 1, 2]
        kinds[ladder[1].treatment] += 1
    assert len(kinds) > 1
    assert set(kinds) <= {*RESYNTHESES, *DEGRADATIONS}


def test_silence_takes_up_to_half_of_a_clip(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digital or with noise, the same in all clips of a ladder and in their reference."""
    monkeypatch.setattr(clips, "SILENT_SHARE", 1.0)
    monkeypatch.setattr(clips, "vary_studio", lambda samples, _rng: samples)
    shares = []
    for number in range(12):
        clip = make_clip(pool, 5, number, loudness)
        assert clip.waveform.shape == clip.reference.shape == (CLIP_SAMPLES,)
        shares.append(np.mean(clip.reference == 0))
    assert 0.1 < max(shares) < 0.6
    ladder = make_ladder(pool, 5, 1, loudness)
    silent = [np.abs(clip.waveform) < 1e-9 for clip in ladder[:1]]
    assert all(np.array_equal(clip.reference, ladder[0].waveform) for clip in ladder)
    assert silent[0].mean() < 0.6


def test_a_ladder_of_noise(pool: Pool) -> None:
    noise = {"white noise": DEGRADATIONS["white noise"]}
    pool = dataclasses.replace(pool, resyntheses={}, degradations=noise)
    clean, *rungs = (clip.waveform.astype(np.float64) for clip in
                     make_ladder(pool, 3, 0, loudness))  # fmt: skip
    noises = [rung - clean for rung in rungs]
    for mild, severe in itertools.pairwise(noises):
        assert mild.std() < severe.std()
        # float32 keeps seven digits of the speech; the noise starts 45 dB below it.
        assert np.corrcoef(mild, severe)[0, 1] > 0.9999


def test_speakers_speak_in_the_shares_of_their_groups(pool: Pool) -> None:
    """A group's share is divided among its speakers; others share a group."""
    assert [speaker.name for speaker in pool.speakers] == ["anna", "flite/slt"]
    np.testing.assert_allclose(pool.shares, [0.75, 0.25])
    np.testing.assert_allclose(pool.ladder_shares, [2 / 3, 1 / 3])
    drawn = Counter(pool.speech(np.random.default_rng(i), 9000, pool.shares)[0] for i in range(400))
    assert drawn["anna"] / 400 == pytest.approx(0.75, abs=0.09)


def test_treatments_can_be_left_out(tmp_path: Path) -> None:
    pool = small_pool(tmp_path, Recipe(leave_out=("WORLD", "hum")))
    assert set(pool.resyntheses) == set(RESYNTHESES) - {"WORLD"}
    assert set(pool.degradations) == set(DEGRADATIONS) - {"hum"}


def test_speech_of_a_pool_has_pauses(tmp_path: Path) -> None:
    """Recordings are at one peak, and follow one another after a pause."""
    pool = Pool.of(find_speakers([recordings(tmp_path, ["anna"], 1)]), Recipe())
    speaker, spoken = pool.speech(np.random.default_rng(0), 90_000, pool.shares)
    assert speaker == "anna"
    assert spoken.shape == (90_000,)
    assert spoken.dtype == np.float32
    whole = speech(4.5)[:48_000]
    whole = whole * np.float32(0.25) / np.abs(whole).max()
    found = scipy.signal.correlate(spoken.astype(np.float64), whole, "valid")
    start = int(found.argmax())
    np.testing.assert_allclose(spoken[start : start + len(whole)], whole, atol=1e-4)  # 16 bits


def test_silent_speakers_are_named(tmp_path: Path) -> None:
    (tmp_path / "mute").mkdir()
    sf.write(tmp_path / "mute" / "a.flac", np.zeros(20_000), 16_000)
    (tmp_path / "mute" / "b.flac").write_bytes(b"no audio")
    pool = Pool.of(find_speakers([tmp_path]), Recipe())
    with pytest.raises(SpeechError, match="mute: most of 2 recordings are silent"):
        pool.speech(np.random.default_rng(0), 1000, pool.shares)


@pytest.mark.parametrize("factor", [1.2, 0.85])
def test_formants_move_and_the_pitch_stays(factor: float) -> None:
    """A 125 Hz pulse train through a resonance at 1 kHz.

    The envelope is smoothed, so that the mean frequency shifts by a part of the factor.
    """
    buzz = np.zeros(32_000)
    buzz[::128] = 1
    radius, angle = 0.97, 2 * np.pi * 1000 / 16_000
    vowel = scipy.signal.lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], buzz)

    def harmonics(samples: NDArray[np.floating]) -> NDArray[np.float64]:
        middle = samples[8000 : 8000 + 128 * 100].astype(np.float64)
        power = np.abs(np.fft.rfft(middle)) ** 2
        assert power[::100].sum() > 0.99 * power.sum()  # nothing between multiples of 125 Hz
        return power[::100]

    def mean_hz(power: NDArray[np.float64]) -> float:
        return float(power @ (125 * np.arange(len(power))) / power.sum())

    moved = clips.shift_formants(vowel.astype(np.float32), factor)
    assert moved.shape == (32_000,)
    assert moved.dtype == np.float32
    way = np.log(mean_hz(harmonics(moved)) / mean_hz(harmonics(vowel))) / np.log(factor)
    assert 0.5 < way < 1.1
    same = clips.shift_formants(vowel.astype(np.float32), 1.0)
    np.testing.assert_allclose(same, vowel, atol=1e-4 * np.abs(vowel).max())


def test_a_gate_lowers_pauses_only() -> None:
    loud = speech(2) / np.abs(speech(2)).max()
    rng = np.random.default_rng(0)
    hiss = rng.normal(0, 1e-4, 16_000).astype(np.float32)
    both = np.concatenate([loud, hiss]).astype(np.float32)
    for seed in range(4):
        gated = gate_pauses(both, np.random.default_rng(seed))
        assert gated.shape == both.shape
        assert gated[-8000:].std() < 0.6 * both[-8000:].std()
        assert np.sum(gated[:32_000] ** 2) > 0.98 * np.sum(both[:32_000] ** 2)
