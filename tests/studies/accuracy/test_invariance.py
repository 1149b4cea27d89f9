from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from mosrt_studies.accuracy.heldout import Speech
from mosrt_studies.accuracy.invariance import CHANGES, measure, movement

Float32Array = npt.NDArray[np.float32]


def test_movement_by_hand() -> None:
    moves = np.array([0.04, -0.02, 1.0])
    found = movement(moves, [False, False, True])
    assert found["mean_abs"] == pytest.approx(1.06 / 3)
    assert found["max_abs"] == 1.0
    assert found["mean"] == pytest.approx(1.02 / 3)
    assert found["flagged"] == pytest.approx(1 / 3)
    assert found["holds"]  # what moves far is flagged
    assert not movement(moves, [True, False, False])["holds"]
    assert not movement(np.array([0.06, -0.06]), [False, False])["holds"]  # the mean
    assert not movement(np.array([0.16, 0.0, 0.0, 0.0]), [False] * 4)["holds"]  # the largest
    assert movement(np.array([2.0]), [True])["holds"]


def spectrum(waveform: Float32Array, rate_hz: int) -> npt.NDArray[np.float64]:
    """Magnitudes at 0 to 7 kHz, a bin per Hz of a clip of one second."""
    return np.abs(np.fft.rfft(waveform.astype(np.float64), rate_hz))[:7000] / rate_hz


def test_changes_are_what_their_names_say(speech: Float32Array) -> None:
    clip = (0.25 * speech[:16_000] / np.abs(speech[:16_000]).max()).astype(np.float32)
    made = {name: change(clip) for name, change in CHANGES.items()}
    for name, (changed, rate_hz) in made.items():
        assert changed.dtype == np.float32
        assert (rate_hz == 16_000) != name.endswith("kHz"), name
        assert np.abs(changed).max() < 1, name
    before, rate_hz = made["50% leading silence"]
    assert len(before) == 2 * len(clip)
    assert not before[: len(clip)].any()
    np.testing.assert_array_equal(before[len(clip) :], clip)
    after, _ = made["25% trailing silence"]
    assert len(after) - len(clip) == pytest.approx(len(after) / 4, abs=1)
    assert not after[len(clip) :].any()
    for level_db in (-40, -3):
        peak = np.abs(made[f"peak at {level_db} dBFS"][0]).max()
        assert 20 * np.log10(peak) == pytest.approx(level_db, abs=1e-3)
    np.testing.assert_array_equal(made["offset of 0.02"][0], clip + np.float32(0.02))
    np.testing.assert_array_equal(made["opposite polarity"][0], -clip)
    for rate_hz in (22_050, 24_000, 44_100, 48_000):
        changed, found_hz = made[f"{rate_hz / 1e3:g} kHz"]
        assert found_hz == rate_hz
        # The resampler's ends and pass band: a hundredth of the largest magnitude.
        reference = spectrum(clip, 16_000)
        np.testing.assert_allclose(
            spectrum(changed, rate_hz), reference, atol=0.01 * float(reference.max())
        )


class Models:
    """One that measures the level, one that only flags it, and one that nothing moves."""

    defaults: tuple[str, ...] = ("level", "flagging", "constant")

    def with_flags(
        self, waveform: Float32Array, _rate_hz: int, /
    ) -> tuple[Mapping[str, float], Mapping[str, frozenset[str]]]:
        level = float(np.abs(waveform).max())
        raised = frozenset({"quiet"} if level < 0.1 else ())
        scores = {"level": level, "flagging": level, "constant": 3.0, "another domain": 9.0}
        return scores, dict.fromkeys(scores, frozenset()) | {"flagging": raised}


def test_measure_compares_each_clip_with_itself(speech: Float32Array) -> None:
    clips = [Speech("ann", speech[:16_000]), Speech("bob", 0.5 * speech[8_000:24_000])]
    changes = {name: CHANGES[name] for name in ("peak at -40 dBFS", "opposite polarity")}
    run = measure(clips, Models(), changes)
    assert list(run["changes"]) == ["level", "flagging", "constant"]
    quiet = run["changes"]["level"]["peak at -40 dBFS"]
    moved = 10 ** (-12 / 20) - 10 ** (-40 / 20)  # all clean clips have their peak at -12 dBFS
    assert quiet["mean_abs"] == pytest.approx(moved, abs=1e-4)
    assert quiet["mean"] == pytest.approx(-moved, abs=1e-4)
    assert (quiet["flagged"], quiet["holds"]) == (0.0, False)
    flagged = run["changes"]["flagging"]["peak at -40 dBFS"]
    assert (flagged["flagged"], flagged["holds"]) == (1.0, True)
    for name in Models.defaults:
        assert run["changes"][name]["opposite polarity"]["max_abs"] == 0.0
    assert run["voices"] == ["ann", "bob"]
    assert run["scores"]["constant"]["clean"].tolist() == [3.0, 3.0]
