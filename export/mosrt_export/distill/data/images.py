"""Computes log-mel images of clips with the runtime's own front end, and varies them."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt._arrays import IntArray
from mosrt.bundle.front_end_spec import MelSpec
from mosrt.mel.front_end import MelFrontEnd

from .clips import CLIP_SAMPLES
from .speech import SAMPLE_RATE_HZ

__all__ = ["MEL", "images_of", "vary_response"]

MEL: Final = MelSpec(
    tensor="images",
    crop_samples=CLIP_SAMPLES,
    n_crops=1,
    n_fft=1024,
    hop_length=160,
    n_mels=120,
    windows=(320, 1024),
    f_min_hz=0.0,
    f_max_hz=8000.0,
    floor_db=100.0,
    image_height=120,
    image_width=501,
)
# Random frequency responses of other microphones.
_KNOTS: Final = 7
_DEVIATION_DB: Final = 3.0
_SHARE: Final = 0.7


@functools.cache
def _front_end() -> MelFrontEnd:
    return MelFrontEnd(MEL, SAMPLE_RATE_HZ)


def images_of(waveforms: NDArray[np.int16]) -> NDArray[np.float16]:
    """Returns the images (clips, windows, mels, frames) of clips (clips, CLIP_SAMPLES).

    They are from 0 to 1, over a range of 100 dB with a resolution of 0.05 dB.
    """
    shape = (len(waveforms), len(MEL.windows), MEL.image_height, MEL.image_width)
    images = np.empty(shape, np.float16)
    for image, waveform in zip(images, waveforms, strict=True):
        by_window = _front_end().images(waveform.astype(np.float32) / 32768)
        image[:] = np.stack([by_window[window] for window in MEL.windows])
    return images


def vary_response(images: torch.Tensor, groups: IntArray, rng: np.random.Generator) -> torch.Tensor:
    """Adds a smooth random frequency response to most images, as another microphone would.

    A response interpolates linearly between knots, whose gains have a standard deviation of 3 dB.

    Args:
        images: Images (clips, windows, mels, frames) float32 from 0 to 1.
        groups: A number per clip (clips,). Clips with the same number get the same response, so
            that it does not change what differs between them.
        rng: Source of the responses.

    Returns:
        Images of the same shape, whose maximum is 1 again.
    """
    distinct, which = np.unique(groups, return_inverse=True)
    knots = rng.normal(0, _DEVIATION_DB / MEL.floor_db, (len(distinct), _KNOTS))
    knots *= rng.random((len(distinct), 1)) < _SHARE
    mels = np.linspace(0, 1, images.shape[2])
    curves = np.stack([np.interp(mels, np.linspace(0, 1, _KNOTS), row) for row in knots])
    shifted = images + torch.from_numpy(curves[which].astype(np.float32))[:, None, :, None]
    loudest = shifted.amax(dim=(2, 3), keepdim=True)
    return (shifted + (1 - loudest)).clamp_(0, 1)
