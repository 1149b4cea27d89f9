"""Images: the log-mel images of a data set, made once by the runtime's own front end."""

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

from mosrt.bundle.front_end_spec import MelSpec
from mosrt.host.files import replacing
from mosrt.mel.front_end import MelFrontEnd

from .clips import CLIP_SAMPLES
from .dataset import chunk_paths
from .voices import SAMPLE_RATE_HZ

__all__ = ["MEL", "draw_images", "image_paths", "other_microphones"]

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


def image_paths(folder: Path) -> list[Path]:
    """The files of images of a data set that has been drawn, in the order of its clips."""
    return [_image_path(chunk) for chunk in chunk_paths(folder)]


def draw_images(folder: Path, workers: int) -> Iterator[int]:
    """Draws the images of every chunk in `folder` that has none yet.

    A file is (clips, windows, mels, frames) float16: half a thousandth of the 100 dB range.

    Yields:
        How many chunks there are, first; then once per chunk that is done.
    """
    missing = [path for path in chunk_paths(folder) if not _image_path(path).exists()]
    yield len(missing)
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn")
    ) as executor:
        for _ in executor.map(_draw, missing):
            yield 1


def _image_path(chunk: Path) -> Path:
    return chunk.with_name(f"images-{chunk.stem.removeprefix('chunk-')}.npy")


@functools.cache
def _front_end() -> MelFrontEnd:
    return MelFrontEnd(MEL, SAMPLE_RATE_HZ)


def _draw(chunk: Path) -> None:
    with np.load(chunk) as arrays:
        waveforms: NDArray[np.int16] = arrays["waveforms"]
    shape = (len(waveforms), len(MEL.windows), MEL.image_height, MEL.image_width)
    images = np.empty(shape, np.float16)
    for i, waveform in enumerate(waveforms):
        drawn = _front_end().images(waveform.astype(np.float32) / 32768)
        images[i] = np.stack([drawn[window] for window in MEL.windows])
    path = _image_path(chunk)
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, images)


_KNOTS: Final = 7
_DEVIATION_DB: Final = 3.0
_SHARE: Final = 0.7


def other_microphones(
    images: torch.Tensor, speeches: NDArray[np.int64], rng: np.random.Generator
) -> torch.Tensor:
    """Images with a smooth random frequency response added to most of them.

    Args:
        images: (clips, windows, mels, frames) float32, from 0, so many dB below the loudest, to 1.
        speeches: (clips,), equal where clips are of the same speech: they get the same microphone,
            so that what differs between them stays what it was.
        rng: Source of the responses: knots of 3 dB standard deviation, straight lines in between.

    Returns:
        Images of the same shape, again with the loudest at 1.
    """
    different, which = np.unique(speeches, return_inverse=True)
    knots = rng.normal(0, _DEVIATION_DB / MEL.floor_db, (len(different), _KNOTS))
    knots *= rng.random((len(different), 1)) < _SHARE
    at = np.linspace(0, 1, images.shape[2])
    curves = np.stack([np.interp(at, np.linspace(0, 1, _KNOTS), row) for row in knots])
    shifted = images + torch.from_numpy(curves[which].astype(np.float32))[:, None, :, None]
    loudest = shifted.amax(dim=(2, 3), keepdim=True)
    return (shifted + (1 - loudest)).clamp_(0, 1)
