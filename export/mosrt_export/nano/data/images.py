"""Computes the log-mel images of a data set with the runtime's own front end."""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt._arrays import IntArray
from mosrt.bundle.front_end_spec import MelSpec
from mosrt.host.files import replacing
from mosrt.mel.front_end import MelFrontEnd

from .clips import CLIP_SAMPLES
from .dataset import chunk_paths
from .voices import SAMPLE_RATE_HZ

__all__ = ["MEL", "compute_images", "image_paths", "vary_response", "write_images"]

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


def image_paths(folder: Path) -> list[Path]:
    """Returns the image files of a data set in the order of its clips."""
    return [_image_path(chunk) for chunk in chunk_paths(folder)]


def compute_images(folder: Path, workers: int) -> Iterator[Path]:
    """Computes the images of every chunk in `folder` that has none yet.

    A file is an array (clips, windows, mels, frames) of float16 from 0 to 1, over a range of 100 dB
    with a resolution of 0.05 dB.

    Yields:
        The file of each chunk, as soon as it exists.
    """
    missing = [chunk for chunk in chunk_paths(folder) if not _image_path(chunk).exists()]
    yield from (path for path in image_paths(folder) if path.exists())
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn")
    ) as executor:
        yield from executor.map(write_images, missing)


def _image_path(chunk: Path) -> Path:
    return chunk.with_name(f"images-{chunk.stem.removeprefix('chunk-')}.npy")


@functools.cache
def _front_end() -> MelFrontEnd:
    return MelFrontEnd(MEL, SAMPLE_RATE_HZ)


def write_images(chunk: Path) -> Path:
    """Computes the images of one chunk, writes them beside it, and returns their file."""
    with np.load(chunk) as arrays:
        waveforms: NDArray[np.int16] = arrays["waveforms"]
    shape = (len(waveforms), len(MEL.windows), MEL.image_height, MEL.image_width)
    images = np.empty(shape, np.float16)
    for i, waveform in enumerate(waveforms):
        by_window = _front_end().images(waveform.astype(np.float32) / 32768)
        images[i] = np.stack([by_window[window] for window in MEL.windows])
    path = _image_path(chunk)
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, images)
    return path


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
