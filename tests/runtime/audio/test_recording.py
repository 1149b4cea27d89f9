import itertools
import tracemalloc
from collections.abc import Iterator

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mosrt import AudioError
from mosrt.audio.guards import FATAL_FLAGS
from mosrt.audio.recording import Recording
from mosrt.audio.sources import ArraySource

RATE_HZ = 16_000
Waveform = npt.NDArray[np.float32]


def noise(seconds: float, rate_hz: int = RATE_HZ, level: float = 0.1) -> Waveform:
    rng = np.random.default_rng(0)
    values = level * rng.standard_normal(int(seconds * rate_hz))
    return np.asarray(values, np.float32)


def crops(recording: Recording, starts: list[int], length: int) -> Waveform:
    (read,) = recording.gather([(np.array(starts), length)])
    return read


def all_of(recording: Recording) -> Waveform:
    """All samples but the last, which no crop shorter than the clip can miss together."""
    n = recording.n_samples - 1
    whole: Waveform = crops(recording, [0], n)[0]
    return whole


@pytest.mark.parametrize("rate_hz", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000])
def test_resampling_equals_librosa_and_soxr(rate_hz: int) -> None:
    stereo = np.stack([noise(5.003, rate_hz), noise(5.003, rate_hz)[::-1]])
    recording = Recording(ArraySource(stereo, rate_hz), RATE_HZ)
    mono = stereo.mean(axis=0)
    theirs = librosa.resample(mono, orig_sr=rate_hz, target_sr=RATE_HZ, res_type="soxr_hq")
    assert recording.n_samples == len(theirs)
    np.testing.assert_array_equal(all_of(recording), theirs[:-1])
    one_shot = soxr.resample(mono, rate_hz, RATE_HZ, "HQ")
    np.testing.assert_array_equal(all_of(recording), one_shot[: len(theirs) - 1])


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("remove_silence", [False, True])
def test_streaming_equals_keeping(rate_hz: int, remove_silence: bool) -> None:
    source = ArraySource(noise(9, rate_hz, 0.03), rate_hz)
    kept = Recording(source, RATE_HZ, remove_silence=remove_silence)
    streamed = Recording(source, RATE_HZ, remove_silence=remove_silence, kept_s=1)
    assert kept.n_samples == streamed.n_samples
    starts = [0, 777, kept.n_samples - 48_000]
    np.testing.assert_array_equal(crops(kept, starts, 48_000), crops(streamed, starts, 48_000))


def test_short_clips_are_tiled() -> None:
    clip = noise(0.9)
    recording = Recording(ArraySource(clip, RATE_HZ), RATE_HZ)
    tiled = np.tile(clip, 48_000 // len(clip) + 1)
    read = crops(recording, [0, len(tiled) - 48_000], 48_000)
    np.testing.assert_array_equal(read, np.stack([tiled[:48_000], tiled[-48_000:]]))
    with pytest.raises(IndexError):
        crops(recording, [len(tiled) - 47_999], 48_000)


@settings(max_examples=50)
@given(loud=st.lists(st.integers(0, 99_999), max_size=30, unique=True), block=st.booleans())
def test_silence_removal_drops_long_gaps_between_loud_samples(loud: list[int], block: bool) -> None:
    clip = np.full(100_000, 0.05, np.float32)
    clip += np.arange(100_000, dtype=np.float32) * 1e-8  # every sample is another
    clip[loud] = 0.5
    recording = Recording(
        ArraySource(clip, RATE_HZ), RATE_HZ, remove_silence=True, kept_s=1 if block else 600
    )
    keep = np.ones(100_000, bool)
    ordered = sorted(loud)
    for left, right in itertools.pairwise(ordered):
        if right - left - 1 > 4_800:
            keep[left + 1 : right] = False
    np.testing.assert_array_equal(all_of(recording), clip[keep][:-1])
    assert ("quiet" in recording.flags) == (not loud)


def flags(waveform: npt.ArrayLike, rate_hz: float = RATE_HZ) -> tuple[str, ...]:
    try:
        return Recording(ArraySource(waveform, rate_hz), RATE_HZ).flags
    except AudioError as exc:
        assert set(exc.flags) <= set(FATAL_FLAGS)
        return exc.flags


def test_guards() -> None:
    good = noise(2)
    assert flags(good) == ()
    assert flags(np.zeros(0)) == ("empty",)
    assert flags(np.zeros((2, 0))) == ("empty",)
    assert flags(good[:1_599]) == ("too-short",)
    assert flags(good[:1_600]) == ()
    for bad in (np.nan, np.inf, -np.inf):
        broken = good.copy()
        broken[-1] = bad
        assert flags(broken) == ("non-finite",)
    assert flags(np.stack([np.full(16_000, np.inf), np.full(16_000, -np.inf)])) == ("non-finite",)
    assert flags(good.astype(np.float64) * 1e300) == ("non-finite",)
    assert flags(np.zeros(16_000)) == ("constant", "silent")
    assert flags(np.full(16_000, 0.3)) == ("constant",)
    assert flags(good * 0.009) == ("silent",)  # -61 dBFS
    assert flags(good * 0.011) == ()  # -59 dBFS
    assert flags(np.clip(good * 10, -1, 1)) == ("clipped",)
    assert flags((np.clip(good * 10, -1, 1) * 32_767).astype(np.int16)) == ("clipped",)
    assert flags(np.concatenate([good, np.zeros(5 * len(good), np.float32)])) == ("mostly-silent",)
    assert flags(good, 2_000) == ("bad-rate",)


class Endless(ArraySource):
    """Two hours of noise at 48 kHz in stereo, made as it is read."""

    def blocks(self) -> Iterator[Waveform]:
        block = np.stack([noise(2, 48_000), noise(2, 48_000)], axis=1)
        for _ in range(3_600):
            yield block


@pytest.mark.full
def test_two_hours_fit_in_little_memory() -> None:
    tracemalloc.start()
    recording = Recording(Endless(np.zeros(1), 48_000), RATE_HZ)
    assert recording.n_samples == 7_200 * RATE_HZ
    read = crops(recording, [0, recording.n_samples - 48_000], 48_000)
    assert np.all(np.abs(read).max(axis=1) > 0.1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Ten minutes are kept before the recording turns out to be longer: 38 MB, and working space.
    assert peak_bytes < 80e6
