"""Makes the inputs of MOS models: crops of the waveform, log-mel images, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from mosrt._arrays import Float32Array, IntArray
from mosrt.audio.recording import Recording
from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest
from mosrt.crops import CropGeometry, CropPlan
from mosrt.host.thread_pool import ThreadPool
from mosrt.mel.front_end import MelFrontEnd

__all__ = ["FusionFrontEnd"]

# Views whose crops are read in one pass: a recording too long to keep is decoded once for each 64.
_VIEWS_READ: Final = 64


class FusionFrontEnd:
    """Makes a model's inputs from a recording and a crop plan. It keeps no state of a recording.

    If the front end is in the model's graph, the inputs are the crops themselves.

    Args:
        manifest: Manifest of a bundle of family "fusion", "spec" or "ssl".

    Attributes:
        geometry: Crop lengths and counts that a plan must have, and the density of a grid.
    """

    def __init__(self, manifest: Manifest) -> None:
        ssl, mel = manifest.ssl, manifest.mel
        self._ssl = ssl
        self._mel = mel
        self._in_graph = manifest.front_end == "graph"
        self._mel_front_end = (
            None if mel is None or self._in_graph else MelFrontEnd(mel, manifest.sample_rate_hz)
        )
        self.geometry = CropGeometry(
            ssl_samples=0 if ssl is None else ssl.crop_samples,
            spec_samples=0 if mel is None else mel.crop_samples,
            n_crops=0 if mel is None else mel.n_crops,
            n_windows=0 if mel is None else len(mel.windows),
            view_every_samples=max(1, round(manifest.grid.view_every_s * manifest.sample_rate_hz)),
            min_views=manifest.grid.min_views,
            max_views=manifest.grid.max_views,
            can_mix=not self._in_graph,
        )

    def views(
        self, recording: Recording, plan: CropPlan, pool: ThreadPool | None = None, at_once: int = 1
    ) -> Iterator[dict[str, Float32Array]]:
        """Makes the inputs of a plan's views, one view after the other.

        Args:
            recording: The recording to score.
            plan: The crops; must fit the recording and `geometry`.
            pool: Threads that share the work; by default the caller's alone.
            at_once: Views to prepare together, so that all threads have work.

        Yields:
            Per view, tensors by input name, float32, without the batch axis.
        """
        pool = pool or ThreadPool(1)
        for rows in _blocks(range(plan.n_views), _VIEWS_READ):
            requests: list[tuple[IntArray, int]] = []
            if self._ssl is not None:
                requests.append((plan.ssl_starts[rows], self._ssl.crop_samples))
            if self._mel is not None:
                starts = list(_windows_by_start(plan, rows, self._mel))
                requests.append((np.array(starts, np.int64), self._mel.crop_samples))
            read = recording.gather(requests)
            for some in _blocks(rows, at_once):
                crops: dict[int, Float32Array] = {}
                images: dict[int, dict[int, Float32Array]] = {}
                if self._mel is not None:
                    crops = dict(zip(starts, read[-1], strict=True))
                    images = self._images(crops, _windows_by_start(plan, some, self._mel), pool)
                for row in some:
                    feeds = {}
                    if self._ssl is not None:
                        crop = read[0][row - rows[0]]
                        feeds[self._ssl.tensor] = (
                            crop if self._in_graph else normalised(crop, self._ssl)
                        )
                    if self._mel is not None:
                        feeds[self._mel.tensor] = (
                            _view_crops(plan, row, crops)
                            if self._in_graph
                            else _view_images(plan, row, self._mel, images)
                        )
                    yield feeds

    def _images(
        self,
        crops: Mapping[int, Float32Array],
        windows: Mapping[int, Sequence[int]],
        pool: ThreadPool,
    ) -> dict[int, dict[int, Float32Array]]:
        """Images by crop start and window length, for the windows needed at each start."""
        front_end = self._mel_front_end
        if front_end is None:
            return {}

        def make(start: int) -> dict[int, Float32Array]:
            return front_end.images(crops[start], windows[start])

        return dict(zip(windows, pool.map(make, windows), strict=True))


def normalised(crop: Float32Array, spec: SslSpec) -> Float32Array:
    """A crop (samples,) at zero mean and unit variance, as wav2vec 2.0's extractor makes it."""
    # Sums in double precision: a 3 s crop has 48 000 terms.
    centred = crop - crop.mean(dtype=np.float64)
    scale = 1.0 / np.sqrt(np.mean(np.square(centred)) + spec.epsilon)
    scaled: Float32Array = (centred * scale).astype(np.float32)
    return scaled


def _windows_by_start(
    plan: CropPlan, rows: Sequence[int], spec: MelSpec
) -> dict[int, tuple[int, ...]]:
    """The window lengths that some views need at each crop start, so that none is made twice."""
    needed: dict[int, set[int]] = {}
    for row in rows:
        for crop, start in enumerate(plan.spec_starts[row].tolist()):
            needed.setdefault(start, set()).update(spec.windows)
            for window, other, _ in _mixes(plan, row, crop, spec):
                needed.setdefault(other, set()).add(window)
    return {
        start: tuple(window for window in spec.windows if window in windows)
        for start, windows in needed.items()
    }


def _mixes(plan: CropPlan, row: int, crop: int, spec: MelSpec) -> Iterator[tuple[int, int, float]]:
    """Window length, start of the crop mixed in, weight of the own crop; empty without mixing."""
    if plan.mix_starts is None or plan.mix_lambdas is None:
        return
    starts = plan.mix_starts[row, crop].tolist()
    weights = plan.mix_lambdas[row, crop].tolist()
    yield from zip(spec.windows, starts, weights, strict=True)


def _view_crops(plan: CropPlan, row: int, crops: Mapping[int, Float32Array]) -> Float32Array:
    """The spectrogram crops of one view, (crops, samples)."""
    return np.stack([crops[start] for start in plan.spec_starts[row].tolist()])


def _view_images(
    plan: CropPlan, row: int, spec: MelSpec, images: Mapping[int, Mapping[int, Float32Array]]
) -> Float32Array:
    """The images of one view, (crops * windows, height, width), mixed where the plan says so."""
    view: list[Float32Array] = []
    for crop, start in enumerate(plan.spec_starts[row].tolist()):
        own = dict(images[start])
        for window, other, weight in _mixes(plan, row, crop, spec):
            # Mixing after the resize is the same as before it: the resize is linear.
            own[window] = (
                np.float32(weight) * own[window] + np.float32(1.0 - weight) * images[other][window]
            )
        view += [own[window] for window in spec.windows]
    return np.stack(view)


def _blocks(rows: range, length: int) -> Iterator[range]:
    """Cuts a range into ranges of at most `length`."""
    for first in range(0, len(rows), length):
        yield rows[first : first + length]
