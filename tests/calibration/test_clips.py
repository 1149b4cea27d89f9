import itertools
import shutil
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mosrt_calibration.clips import ClipsError, choose, clip_features, list_sha256
from tests.standins.quantizable import RATE_HZ


def test_the_same_files_give_the_same_choice_wherever_they_lie(
    recordings: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(recordings, moved)
    here = choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=8)
    there = choose(moved, sample_rate_hz=RATE_HZ, n_calibration=8)
    assert [c.to_dict() for c in here.calibration] == [c.to_dict() for c in there.calibration]
    assert [c.to_dict() for c in here.evaluation] == [c.to_dict() for c in there.evaluation]
    assert list_sha256(here.calibration) == list_sha256(there.calibration)
    other = choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=8, seed=1)
    assert list_sha256(here.calibration) != list_sha256(other.calibration)


def test_evaluation_clips_are_other_clips(recordings: Path) -> None:
    choice = choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=24)
    assert len(choice.calibration) == 24
    assert len(choice.evaluation) == 16
    assert choice.held_out
    assert not {c.name for c in choice.calibration} & {c.name for c in choice.evaluation}


def test_with_too_few_clips_left_evaluation_says_that_it_is_not_held_out(recordings: Path) -> None:
    choice = choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=38)
    assert len(choice.evaluation) == 40
    assert not choice.held_out


def test_every_kind_of_recording_comes_once_before_any_comes_twice(recordings: Path) -> None:
    everything = choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=40).calibration
    values = np.array([astuple(clip.features) for clip in everything])
    above = values > np.median(values, axis=0)
    kinds = [tuple(row) for row in above.tolist()]
    n_kinds = len(set(kinds))
    assert n_kinds >= 8
    assert len(set(kinds[:n_kinds])) == n_kinds
    counts = Counter(kinds)
    for n, (one, other) in itertools.product(range(1, 41), itertools.permutations(counts, 2)):
        sofar = Counter(kinds[:n])
        # one kind gets ahead of another by more than a clip only where the other has no more
        assert sofar[one] <= sofar[other] + 1 or sofar[other] == counts[other]


def test_what_cannot_be_scored_is_passed_over_and_twins_count_once(
    recordings: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "mixed"
    shutil.copytree(recordings / "clean", directory / "b")
    shutil.copytree(recordings / "clean", directory / "a")
    (directory / "broken.wav").write_bytes(b"RIFF")
    (directory / "notes.txt").write_text("no audio")
    soundfile.write(directory / "empty.wav", np.zeros(0), RATE_HZ)
    choice = choose(directory, sample_rate_hz=RATE_HZ, n_calibration=20)
    assert sorted(clip.name for clip in choice.calibration) == [
        f"a/{i:02}.wav" for i in range(1, 40, 2)
    ]


def test_too_few_recordings(recordings: Path) -> None:
    with pytest.raises(ClipsError, match=r"40 recordings .* 41 are needed.*--clips"):
        choose(recordings, sample_rate_hz=RATE_HZ, n_calibration=41)


def test_clip_features_measure_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    syllables = (np.sin(2 * np.pi * 3 * time) > 0).astype(np.float64)
    speech = 0.1 * syllables * (rng.standard_normal(len(time)))
    noise = 0.01 * rng.standard_normal(len(time))
    clean = clip_features(speech.astype(np.float32), RATE_HZ)
    assert clean.duration_s == 2.0
    # white noise at 0.1: -20 dB
    assert clean.loudness_db == pytest.approx(-20.0, abs=0.5)
    assert clip_features((0.1 * speech).astype(np.float32), RATE_HZ).loudness_db == pytest.approx(
        clean.loudness_db - 20.0, abs=0.1
    )
    noisy = clip_features((speech + noise).astype(np.float32), RATE_HZ)
    assert noisy.snr_db == pytest.approx(20.0, abs=1.5)  # 0.1 against 0.01
    assert clean.snr_db > 60
    # white: an eighth of the power lies below 1 kHz of 8 kHz
    assert clean.tilt_db == pytest.approx(10 * np.log10(1 / 7), abs=0.5)
    assert clean.bandwidth_hz == 8000.0
    spectrum = np.fft.rfft(speech)
    spectrum[np.fft.rfftfreq(len(speech), 1 / RATE_HZ) > 3400] = 0
    dull = clip_features(np.fft.irfft(spectrum, len(speech)).astype(np.float32), RATE_HZ)
    # the window lets some 60 dB through, a few bins of 31 Hz away
    assert dull.bandwidth_hz == pytest.approx(3400, abs=200)
