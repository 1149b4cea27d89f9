"""Mel images as matrix products, in float32, against librosa in double precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mosrt.bundle.front_end_spec import MelSpec
from mosrt.mel.front_end import MelFrontEnd
from mosrt_export.graphs.front_end import MelImages
from tests.conftest import UTMOSV2_MEL, noise
from tests.runtime.mel.test_front_end import RATE_HZ, SPECS, librosa_images

MORE = {
    "prime FFT": dataclasses.replace(
        UTMOSV2_MEL, n_fft=257, hop_length=90, windows=(257, 100), n_mels=30, image_height=30
    ),
    "crop of odd length": dataclasses.replace(
        UTMOSV2_MEL,
        crop_samples=8_191,
        n_fft=512,
        hop_length=160,
        windows=(512, 31),
        n_mels=40,
        image_height=40,
    ),
}


@torch.inference_mode()
def images(spec: MelSpec, *crops: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Images (n_crops * windows, height, width) of one view."""
    found: npt.NDArray[np.float32] = MelImages(spec, RATE_HZ)(
        torch.from_numpy(np.stack(crops))[None]
    )[0].numpy()
    return found


def in_numpy(spec: MelSpec, *crops: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same by the runtime's front end."""
    front_end = MelFrontEnd(spec, RATE_HZ)
    made = [front_end.images(crop) for crop in crops]
    return np.stack([each[window] for each in made for window in spec.windows])


def sweep(n_samples: int) -> npt.NDArray[np.float32]:
    """A loud tone that goes through all frequencies: everything else is nearly silent."""
    rate_hz = np.linspace(50, 7_900, n_samples)
    return (0.9 * np.sin(2 * np.pi / RATE_HZ * np.cumsum(rate_hz))).astype(np.float32)


@pytest.mark.filterwarnings("ignore:Empty filters detected:UserWarning")
@pytest.mark.parametrize("name", [*SPECS, *MORE])
@pytest.mark.parametrize("signal", ["speech", "sweep"])
def test_equals_librosa_in_double_precision(
    name: str, signal: str, speech: npt.NDArray[np.float32]
) -> None:
    """In amplitude relative to the loudest, where float32's error is the same at all levels."""
    spec = (SPECS | MORE)[name]
    spec = dataclasses.replace(spec, n_crops=1, image_width=spec.n_frames)  # not resized
    first = min(20_000, len(speech) - spec.crop_samples)
    crop = speech[first:] if signal == "speech" else sweep(spec.crop_samples)
    ours = images(spec, crop[: spec.crop_samples])
    theirs = np.stack(list(librosa_images(crop[: spec.crop_samples], spec).values()))
    found, wanted = (
        10 ** ((image.astype(np.float64) - 1) * spec.floor_db / 20) for image in (ours, theirs)
    )
    # three times float32's resolution of the loudest, which may lie outside of the bands; and what
    # a logarithm over a range of 100 dB loses
    np.testing.assert_allclose(found, wanted, atol=4e-7, rtol=2e-5)


def test_crops_and_windows_are_in_order(speech: npt.NDArray[np.float32]) -> None:
    """Resized, against the runtime's own: 2e-4 of the range is 0.016 dB."""
    crops = (speech[:22_400], noise(22_400))
    found = images(UTMOSV2_MEL, *crops)
    assert found.shape == (8, 512, 512)
    np.testing.assert_allclose(found, in_numpy(UTMOSV2_MEL, *crops), atol=2e-4)
    assert -1e-6 <= found.min() < found.max() <= 1 + 1e-6


def test_views_do_not_mix(speech: npt.NDArray[np.float32]) -> None:
    spec = dataclasses.replace(SPECS["5 s of speech"], n_crops=1)
    batch = np.stack([speech[:80_000], noise(80_000), np.zeros(80_000, np.float32)])
    with torch.inference_mode():
        found = MelImages(spec, RATE_HZ)(torch.from_numpy(batch)[:, None]).numpy()
    for crop, together in zip(batch, found, strict=True):
        np.testing.assert_allclose(together, images(spec, crop), atol=1e-6)


EXTREMES = {
    "silence": np.zeros(80_000),
    "constant": np.full(80_000, 0.5),
    "full scale": np.sign(np.sin(np.arange(80_000) / 7)),
    "beyond full scale": 100 * np.sin(np.arange(80_000) / 7),
    "a click": np.eye(1, 80_000, 40_000)[0],
    "hardly anything": 1e-6 * np.sin(np.arange(80_000) / 7),
    "less": 1e-20 * np.sin(np.arange(80_000) / 7),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_are_as_in_numpy(name: str) -> None:
    """Of the range, 100 dB, next to whose floor float32 is right to 0.1 dB."""
    spec = dataclasses.replace(SPECS["5 s of speech"], n_crops=1)
    crop = EXTREMES[name].astype(np.float32)
    found = images(spec, crop)
    np.testing.assert_allclose(found, in_numpy(spec, crop), atol=1e-3)
    if name in ("silence", "less"):
        np.testing.assert_array_equal(found, np.ones_like(found))
