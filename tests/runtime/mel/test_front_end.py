import dataclasses
import subprocess
import sys
from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mosrt.bundle.front_end_spec import MelSpec
from mosrt.mel.front_end import MelFrontEnd, resize_weights
from mosrt.mel.power import FftMelPower, SlidingMelPower, mel_power
from tests.conftest import UTMOSV2_MEL, GoldenCase

RATE_HZ = 16_000
Float32Array = npt.NDArray[np.float32]


def librosa_images(
    crop: npt.NDArray[np.float32], spec: MelSpec
) -> dict[int, npt.NDArray[np.float64]]:
    """Normalised dB spectrograms in double precision, per window."""
    images = {}
    for window in spec.windows:
        power = librosa.feature.melspectrogram(
            y=crop.astype(np.float64),
            sr=RATE_HZ,
            n_fft=spec.n_fft,
            hop_length=spec.hop_length,
            win_length=window,
            n_mels=spec.n_mels,
            fmin=spec.f_min_hz,
            fmax=spec.f_max_hz,
        )
        level_db = librosa.power_to_db(power, ref=np.max, top_db=spec.floor_db)
        images[window] = (level_db + spec.floor_db) / spec.floor_db
    return images


def test_golden_spectrograms(golden: GoldenCase) -> None:
    front_end = MelFrontEnd(UTMOSV2_MEL, RATE_HZ)
    waveform = golden.waveform.astype(np.float32) / np.float32(32_768)
    tiled = np.tile(waveform, 22_400 // len(waveform) + 1)

    def spectrogram(start: int, window: int) -> Float32Array:
        return front_end.spectrograms(tiled[start : start + 22_400])[window]

    plan = golden.plan
    images = []
    for crop, start in enumerate(plan.spec_starts[0]):
        for i, window in enumerate(UTMOSV2_MEL.windows):
            image = spectrogram(start, window)
            if plan.mix_starts is not None and plan.mix_lambdas is not None:
                weight = np.float32(plan.mix_lambdas[0, crop, i])
                other = spectrogram(plan.mix_starts[0, crop, i], window)
                image = weight * image + (1 - weight) * other
            images.append(image)
    sample = np.stack(images)[:, ::7, ::9]
    # 2e-4 is 0.016 dB, what the reference's own single-precision arithmetic leaves open.
    np.testing.assert_allclose(sample, golden.arrays["melspec_sample"], atol=2e-4, rtol=0)
    resized = np.stack(images) @ resize_weights(701, 512)
    np.testing.assert_allclose(
        resized[:, ::37, ::37], golden.arrays["resized_sample"], atol=2e-4, rtol=0
    )
    np.testing.assert_allclose(resized.sum(axis=(1, 2)), golden.arrays["resized_sum"], rtol=2e-4)


SPECS = {
    "utmosv2": UTMOSV2_MEL,
    "three windows": dataclasses.replace(UTMOSV2_MEL, windows=(2048, 256, 128)),
    "80 mels": dataclasses.replace(
        UTMOSV2_MEL, n_fft=1024, hop_length=64, windows=(1024, 512), n_mels=80, image_height=80
    ),
    "speech recognition": dataclasses.replace(
        UTMOSV2_MEL, n_fft=512, hop_length=160, windows=(400,), n_mels=80, image_height=80
    ),
    "5 s of speech": dataclasses.replace(
        UTMOSV2_MEL,
        crop_samples=80_000,
        n_fft=1024,
        hop_length=160,
        windows=(320, 1024),
        n_mels=120,
        floor_db=100.0,
        image_height=120,
        image_width=501,
    ),
    "5 s of speech, short FFT": dataclasses.replace(
        UTMOSV2_MEL,
        crop_samples=80_000,
        n_fft=512,
        hop_length=160,
        windows=(320, 512),
        n_mels=120,
        floor_db=100.0,
        image_height=120,
        image_width=501,
    ),
    "odd hop": dataclasses.replace(
        UTMOSV2_MEL, n_fft=321, hop_length=100, windows=(321, 250), n_mels=40, image_height=40
    ),
    "band": dataclasses.replace(UTMOSV2_MEL, f_min_hz=300.0, f_max_hz=3400.0),
}


@pytest.mark.filterwarnings("ignore:Empty filters detected:UserWarning")
@pytest.mark.parametrize("name", SPECS)
def test_equals_librosa_in_double_precision(name: str, speech: npt.NDArray[np.float32]) -> None:
    spec = SPECS[name]
    first = min(20_000, len(speech) - spec.crop_samples)
    crop = speech[first : first + spec.crop_samples]
    ours = MelFrontEnd(spec, RATE_HZ).spectrograms(crop)
    for window, theirs in librosa_images(crop, spec).items():
        difference_db = np.abs(ours[window] - theirs) * spec.floor_db
        above_floor = theirs > 0
        assert difference_db[above_floor].max() <= 1e-3
        assert difference_db.max() <= 1e-3


def test_quiet_bands_beside_a_loud_one_are_right() -> None:
    # Where nothing but a tone sounds, most bins are 100 dB and more below it: what is left of them
    # after single precision's 1e-7 of the tone is off by 5e-3 dB.
    spec = SPECS["5 s of speech"]
    rate_hz = np.linspace(50, 7_900, spec.crop_samples)
    crop = (0.9 * np.sin(2 * np.pi / RATE_HZ * np.cumsum(rate_hz))).astype(np.float32)
    ours = MelFrontEnd(spec, RATE_HZ).images(crop)
    for window, theirs in librosa_images(crop, spec).items():
        np.testing.assert_allclose(ours[window] * 100, theirs * 100, atol=1e-3, rtol=0)


def test_as_many_frames_as_columns_are_not_resized(speech: npt.NDArray[np.float32]) -> None:
    spec = SPECS["5 s of speech"]
    front_end = MelFrontEnd(spec, RATE_HZ)
    images, spectrograms = (
        make(speech[: spec.crop_samples]) for make in (front_end.images, front_end.spectrograms)
    )
    for window in spec.windows:
        assert images[window].shape == (spec.image_height, spec.image_width)
        np.testing.assert_array_equal(images[window], spectrograms[window])


def test_every_window_alone_equals_all_together(speech: npt.NDArray[np.float32]) -> None:
    power = SlidingMelPower(UTMOSV2_MEL, RATE_HZ)
    crop = speech[:22_400]
    together = power(crop, UTMOSV2_MEL.windows)
    for window in UTMOSV2_MEL.windows:
        np.testing.assert_array_equal(power(crop, [window])[window], together[window])


@settings(max_examples=15)
@given(
    hop=st.sampled_from([2, 8, 32]),
    doublings=st.sets(st.integers(1, 5), min_size=1),
    extra=st.sampled_from([1, 2]),
    n_mels=st.integers(1, 64),
    seed=st.integers(0, 2**32 - 1),
)
def test_sliding_equals_fft(
    hop: int, doublings: set[int], extra: int, n_mels: int, seed: int
) -> None:
    windows = tuple(hop << doubling for doubling in doublings)
    spec = dataclasses.replace(
        UTMOSV2_MEL,
        n_fft=max(windows) * extra,
        hop_length=hop,
        windows=windows,
        n_mels=n_mels,
        image_height=n_mels,
        crop_samples=hop * 50,
    )
    crop = np.random.default_rng(seed).standard_normal(spec.crop_samples, np.float32)
    assert isinstance(mel_power(spec, RATE_HZ), SlidingMelPower)
    sliding = SlidingMelPower(spec, RATE_HZ)(crop, windows)
    fft = FftMelPower(spec, RATE_HZ)(crop, windows)
    for window in windows:
        # Noise has no quiet bins: errors are relative to the largest power of the window.
        scale = fft[window].max()
        np.testing.assert_allclose(sliding[window] / scale, fft[window] / scale, atol=2e-6)


def test_silence_and_range(speech: npt.NDArray[np.float32]) -> None:
    front_end = MelFrontEnd(UTMOSV2_MEL, RATE_HZ)
    for image in front_end.images(np.zeros(22_400, np.float32)).values():
        # librosa's dB of nothing relative to nothing is 0 dB, the maximum.
        np.testing.assert_allclose(image, np.ones((512, 512)), atol=1e-6)
    for image in front_end.images(speech[:22_400]).values():
        assert image.shape == (512, 512)
        assert image.dtype == np.float32
        assert -1e-6 <= image.min() < image.max() <= 1 + 1e-6


def test_rejects_another_length() -> None:
    with pytest.raises(ValueError, match="22400"):
        MelFrontEnd(UTMOSV2_MEL, RATE_HZ).images(np.zeros(22_399, np.float32))


@pytest.mark.parametrize(("n_in", "n_out"), [(701, 512), (512, 701), (7, 7), (100, 33), (3, 50)])
def test_resize_equals_pillow(n_in: int, n_out: int) -> None:
    rows = np.random.default_rng(0).standard_normal((5, n_in)).astype(np.float32)
    theirs = Image.fromarray(rows).resize((n_out, 5), Image.Resampling.BILINEAR)
    ours = rows @ resize_weights(n_in, n_out)
    # Pillow works in single precision.
    np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-6)


THREADS_SCRIPT = """
import time
import numpy as np
from mosrt.bundle.bundle import Bundle
from mosrt.mel.front_end import MelFrontEnd

manifest = Bundle.open({bundle!r}).manifest
front_end = MelFrontEnd(manifest.mel, manifest.sample_rate_hz)
crop = np.random.default_rng(0).standard_normal(22_400).astype(np.float32) / 10
front_end.images(crop)
process, thread = time.process_time(), time.thread_time()
for _ in range(10):
    front_end.images(crop)
print(time.process_time() - process, time.thread_time() - thread)
"""


def test_starts_no_threads(tiny: Path) -> None:
    # In a process of its own: BLAS threads that other tests woke spin on for a while.
    script = THREADS_SCRIPT.format(bundle=str(tiny))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    process_s, thread_s = map(float, run.stdout.split())
    # All processor time of the process was spent in the calling thread: BLAS had no helpers.
    assert process_s <= 1.05 * thread_s
