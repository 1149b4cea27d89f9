"""Computes mel power spectra of a crop for several window lengths at once, with NumPy alone.

There are two implementations. `SlidingMelPower` shares computations between windows and overlapping
frames. `FftMelPower` is the plain short-time Fourier transform, for geometries that the first does
not cover. Both follow librosa's conventions: centred frames, zero padding, periodic Hann windows
centred in the FFT frame, power spectra.

The sliding transform works as follows. N is the FFT size and h the hop. Block b is the h samples
from sample b·h on, and B_b[k] is its N-point spectrum at bin k, with phases relative to the first
sample of the crop. One matrix product with inner dimension h gives all B, up to that phase. The
unwindowed spectrum of the 2m blocks from b on is the sum

    S_2m,b[k] = S_m,b[k] + S_m,b+m[k],

so log2(W / h) additions give the spectrum of *every* frame of W samples, and those of all shorter
windows are intermediate results. A periodic Hann window of W samples is the sum of three complex
exponentials. With phases relative to the start of each frame, windowing is a difference between
bins that are d = N / W apart:

    4 X[k] = (S[k] - S[k - d]) - (S[k + d] - S[k]).

B is computed in double precision: between the harmonics of loud speech, blocks cancel to -80 dB,
and a rounding error made before that would remain. All other steps use single precision.

For all windows together this takes about twenty operations per frame and bin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import Complex64Array, Float32Array
from mosrt.bundle.front_end_spec import MelSpec

__all__ = ["FftMelPower", "MelPower", "SlidingMelPower", "mel_filterbank", "mel_power"]

# Slaney's Auditory Toolbox (Interval Research TR 1998-010): linear below 1 kHz, with 200/3 Hz per
# mel; logarithmic above, with 27 mels per factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def mel_filterbank(
    *, sample_rate_hz: int, n_fft: int, n_mels: int, f_min_hz: float, f_max_hz: float
) -> npt.NDArray[np.float64]:
    """Triangular filters, each of unit area in Hz, on the bins of an `n_fft`-point power spectrum.

    Args:
        sample_rate_hz: Sampling rate.
        n_fft: FFT size in samples.
        n_mels: Number of filters, evenly spaced in mels from `f_min_hz` to `f_max_hz`.
        f_min_hz: Lower edge of the first filter.
        f_max_hz: Upper edge of the last filter.

    Returns:
        Weights (n_mels, n_fft // 2 + 1) float64, non-negative.
    """
    bins_hz = np.arange(n_fft // 2 + 1) * (sample_rate_hz / n_fft)
    edges_mel = np.linspace(_mel(f_min_hz), _mel(f_max_hz), n_mels + 2)
    edges_hz = _hz(edges_mel)
    widths_hz = np.diff(edges_hz)
    offsets_hz = edges_hz[:, None] - bins_hz
    rising = -offsets_hz[:-2] / widths_hz[:-1, None]
    falling = offsets_hz[2:] / widths_hz[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    weights: npt.NDArray[np.float64] = triangles * area[:, None]
    return weights


def _mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = mel * _LINEAR_HZ_PER_MEL
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, linear, logarithmic)


Complex128Array = npt.NDArray[np.complex128]

# Largest number of multiplications in one matrix product. For larger ones OpenBLAS, which NumPy
# ships with, starts threads of its own (65536 * GEMM_MULTITHREAD_THRESHOLD in its
# interface/gemm.c), and results would depend on their number.
_MAX_TILE: Final = 65_536 * 4
# Most bins in one chunk, so that the working set is about the size of a core's L2 cache.
_CHUNK_BINS: Final = 192
# Mel bands per product: few, because each band covers few bins.
_BANDS: Final = 8
# Numbers of frames and blocks are multiples of these, so that they divide into tiles.
_FRAME_TILE: Final = 64
_BLOCK_TILE: Final = 16
# Frames per FFT call, a divisor of _FRAME_TILE: few enough to stay in a core's cache.
_FFT_FRAMES: Final = 32


MelPower = Callable[[Float32Array, Sequence[int]], dict[int, Float32Array]]
"""Mel power of a crop (samples,) for each of some window lengths: (n_mels, frames) float32."""


def mel_power(spec: MelSpec, sample_rate_hz: int) -> MelPower:
    """The fastest implementation that covers `spec`."""
    if SlidingMelPower.covers(spec):
        return SlidingMelPower(spec, sample_rate_hz)
    return FftMelPower(spec, sample_rate_hz)


@dataclass(frozen=True, slots=True)
class _Bands:
    """A group of neighbouring mel bands.

    Attributes:
        mels: The bands.
        squares: Columns of the chunk's squares: two, re² and im², for each bin of the bands.
        weights: (bands, 2 * bins) float32, with each bin's weight twice.
    """

    mels: slice
    squares: slice
    weights: Float32Array


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Constants for one range of bins, with the margin on either side that windowing needs.

    Attributes:
        width: Number of bins, with margins.
        blocks_to_bins: Transform of one block, (hop, 2 * width) float64, re and im interleaved.
        rotations: exp(-2πi k b h / N), (N / h * width,), which make the phases of block b relative
            to the start of the crop; they repeat after N / h blocks.
        inverse_rotations: Their inverse, which makes phases relative to the frame's start.
        bands: Projections to the mel bands within the chunk.
    """

    width: int
    blocks_to_bins: npt.NDArray[np.float64]
    rotations: Complex128Array
    inverse_rotations: Complex64Array
    bands: tuple[_Bands, ...]


class SlidingMelPower:
    """Computes mel power by doubling block spectra; the module's docstring has the method.

    An instance holds only constants, so several threads may use it at once.
    """

    def __init__(self, spec: MelSpec, sample_rate_hz: int) -> None:
        self._spec = spec
        self._margin = spec.n_fft // min(spec.windows)
        self._longest = max(spec.windows)
        self._first_block = self._longest // 2 // spec.hop_length
        self._n_blocks = _ceil_to(spec.crop_samples // spec.hop_length, _BLOCK_TILE)
        self._n_frames = _ceil_to(spec.n_frames, _FRAME_TILE)
        # Number of positions that each doubling must compute, from the last one back: the spectrum
        # of 2m blocks at b needs those of m blocks at b and b + m.
        counts = [self._n_frames]
        for doubling in reversed(range((self._longest // spec.hop_length).bit_length() - 1)):
            counts.insert(0, counts[0] + (1 << doubling))
        self._counts = tuple(_ceil_to(count, _BLOCK_TILE) for count in counts)
        # The sliding transform yields 4X, and the filters apply to |X|².
        self._chunks = tuple(self._make_chunks(_weights(spec, sample_rate_hz) / 16))

    @staticmethod
    def covers(spec: MelSpec) -> bool:
        """Whether every window is a power of two times twice the hop, and divides n_fft."""
        hop, n_fft = spec.hop_length, spec.n_fft
        return spec.crop_samples % hop == 0 and all(
            window % (2 * hop) == 0
            and (window // hop) & (window // hop - 1) == 0
            and n_fft % window == 0
            for window in spec.windows
        )

    def _make_chunks(self, weights: npt.NDArray[np.float64]) -> Iterator[_Chunk]:
        """Groups mel bands so that their bins fit a chunk; shared bins are computed twice."""
        n_fft, hop, margin = self._spec.n_fft, self._spec.hop_length, self._margin
        spans = _spans(weights)
        bands = list(spans)
        while bands:
            first = spans[bands[0]][0]
            count = sum(spans[band][1] <= first + _CHUNK_BINS for band in bands) or 1
            run, bands = bands[:count], bands[count:]
            bins = np.arange(first - margin, spans[run[-1]][1] + margin)
            within = _phasors(np.outer(np.arange(hop), bins), n_fft)
            rotations = _phasors(np.outer(np.arange(n_fft // hop), bins * hop), n_fft)
            yield _Chunk(
                width=len(bins),
                blocks_to_bins=within.view(np.float64),
                rotations=rotations.reshape(-1),
                inverse_rotations=rotations.conj().astype(np.complex64).reshape(-1),
                bands=_bands(weights, spans, run, int(bins[0])),
            )

    def __call__(self, crop: Float32Array, windows: Sequence[int]) -> dict[int, Float32Array]:
        """As `MelPower`."""
        spec, hop = self._spec, self._spec.hop_length
        blocks = np.zeros((self._n_blocks, hop), np.float64)
        blocks[: len(crop) // hop] = crop.reshape(-1, hop)
        power = {window: np.zeros((spec.n_mels, self._n_frames), np.float32) for window in windows}
        # The last doublings read up to a tile beyond these positions; the result is not affected.
        n_blocks = self._counts[0] + _BLOCK_TILE
        widest = n_blocks * max(chunk.width for chunk in self._chunks)
        space = [np.zeros(widest, np.complex64) for _ in range(3)]
        exact = np.empty(widest, np.complex128)
        for chunk in self._chunks:
            for window, squares in self._squares(blocks, chunk, windows, space, exact):
                _project(squares, chunk.bands, power[window])
        return {window: rows[:, : spec.n_frames] for window, rows in power.items()}

    def _squares(
        self,
        blocks: npt.NDArray[np.float64],
        chunk: _Chunk,
        windows: Sequence[int],
        space: list[Complex64Array],
        exact: Complex128Array,
    ) -> Iterator[tuple[int, Float32Array]]:
        """Yields 16·re² and 16·im² of a chunk of bins for each window.

        All operations run over flat memory with the margins, because one long loop is several times
        faster than many short ones.

        Args:
            blocks: The crop's blocks (blocks, hop), without the zero padding.
            chunk: Constants of the chunk.
            windows: Window lengths wanted.
            space: Three work buffers; the arrays yielded are views of them.
            exact: One work buffer in double precision.

        Yields:
            Window length, and squares (frames, 2 * width) float32.
        """
        hop, width = self._spec.hop_length, chunk.width
        sums, spare, hann = space
        tile = _power_of_two(_BLOCK_TILE, _MAX_TILE // chunk.blocks_to_bins.size)
        spectra = exact[: len(blocks) * width]
        np.matmul(
            blocks.reshape(-1, tile, hop),
            chunk.blocks_to_bins,
            out=spectra.view(np.float64).reshape(-1, tile, 2 * width),
        )
        before = self._first_block * width
        inside = slice(before, before + len(spectra))
        sums[:before] = 0
        _rotate(spectra, chunk.rotations, before, out=sums[inside])
        sums[inside.stop :] = 0
        for doubling, count in enumerate(self._counts[1:]):
            m = 1 << doubling
            size = count * width
            np.add(sums[:size], sums[m * width : m * width + size], out=spare[:size])
            sums, spare = spare, sums
            window = 2 * m * hop
            if window in windows:
                # Frame t is centred on the same sample for every window.
                start = (self._longest - window) // 2 // hop * width
                frames = hann[: self._n_frames * width]
                _rotate(
                    sums[start : start + len(frames)], chunk.inverse_rotations, start, out=frames
                )
                d = self._spec.n_fft // window
                steps = spare[: len(frames) - d]
                np.subtract(frames[d:], frames[:-d], out=steps)
                # The last bins of the last frame's margin are not computed, and nothing reads them.
                np.subtract(steps[:-d], steps[d:], out=frames[d:-d])
                squares = frames.view(np.float32)
                np.multiply(squares, squares, out=squares)
                yield window, squares.reshape(self._n_frames, 2 * width)
            if window == max(windows):
                return


class FftMelPower:
    """Computes mel power by one FFT per frame and window; an instance holds only constants.

    The FFT uses double precision, which is as fast in NumPy as single precision and the only one
    before NumPy 2. Bins 100 dB below the loudest one of their frame are then still accurate.
    """

    def __init__(self, spec: MelSpec, sample_rate_hz: int) -> None:
        self._spec = spec
        weights = _weights(spec, sample_rate_hz)
        spans = _spans(weights)
        self._bands = _bands(weights, spans, list(spans), 0)
        # Periodic Hann windows.
        self._hann = {
            window: 0.5 - 0.5 * np.cos(2 * np.pi / window * np.arange(window))
            for window in spec.windows
        }

    def __call__(self, crop: Float32Array, windows: Sequence[int]) -> dict[int, Float32Array]:
        """As `MelPower`."""
        spec = self._spec
        count = _ceil_to(spec.n_frames, _FRAME_TILE)
        padded = np.zeros((count - 1) * spec.hop_length + spec.n_fft)
        padded[spec.n_fft // 2 :][: len(crop)] = crop
        frames = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft)[:: spec.hop_length]
        squares = np.empty((count, 2 * (spec.n_fft // 2 + 1)), np.float32)
        power = {window: np.zeros((spec.n_mels, count), np.float32) for window in windows}
        for window, rows in power.items():
            left = (spec.n_fft - window) // 2
            inside = slice(left, left + window)
            windowed = np.zeros((_FFT_FRAMES, spec.n_fft))
            for first in range(0, count, _FFT_FRAMES):
                part = slice(first, first + _FFT_FRAMES)
                np.multiply(frames[part, inside], self._hann[window], out=windowed[:, inside])
                squares[part] = np.fft.rfft(windowed).view(np.float64)
            np.multiply(squares, squares, out=squares)
            _project(squares, self._bands, rows)
        return {window: rows[:, : spec.n_frames] for window, rows in power.items()}


def _rotate(
    values: Complex64Array | Complex128Array,
    rotations: Complex64Array | Complex128Array,
    start: int,
    *,
    out: Complex64Array,
) -> None:
    """Multiplies flat `values` by periodic `rotations` from index `start` on, into `out`."""
    done = 0
    while done < len(values):
        part = rotations[(start + done) % len(rotations) :][: len(values) - done]
        span = slice(done, done + len(part))
        np.multiply(values[span], part, out=out[span], casting="same_kind")
        done += len(part)


def _project(squares: Float32Array, bands: tuple[_Bands, ...], power: Float32Array) -> None:
    """Applies the filters to squares (frames, 2 * width), into `power` (n_mels, frames)."""
    for band in bands:
        tile = _power_of_two(_FRAME_TILE, _MAX_TILE // band.weights.size)
        part = squares.reshape(-1, tile, squares.shape[1])[:, :, band.squares]
        # Splitting the last axis needs no copy, so this is a view.
        rows = power[band.mels].reshape(len(band.weights), -1, tile)
        np.matmul(band.weights, part.transpose(0, 2, 1), out=rows.transpose(1, 0, 2))


def _bands(
    weights: npt.NDArray[np.float64], spans: dict[int, tuple[int, int]], run: list[int], origin: int
) -> tuple[_Bands, ...]:
    """Bands `run` of the filter bank as dense matrices; column 0 of squares is bin `origin`."""
    groups = []
    for group in (run[i : i + _BANDS] for i in range(0, len(run), _BANDS)):
        first, last = spans[group[0]][0], spans[group[-1]][1]
        mels = slice(group[0], group[-1] + 1)
        doubled = np.repeat(weights[mels, first:last], 2, axis=1)
        squares = slice(2 * (first - origin), 2 * (last - origin))
        groups.append(_Bands(mels, squares, np.ascontiguousarray(doubled, np.float32)))
    return tuple(groups)


def _spans(weights: npt.NDArray[np.float64]) -> dict[int, tuple[int, int]]:
    """First and one past the last bin of each band that has bins."""
    used = {band: np.flatnonzero(row) for band, row in enumerate(weights)}
    return {band: (int(bins[0]), int(bins[-1]) + 1) for band, bins in used.items() if bins.size}


def _phasors(products: npt.NDArray[np.int64], n_fft: int) -> Complex128Array:
    """exp(-2πi products / n_fft), with products reduced as integers to keep phases exact."""
    phasors: Complex128Array = np.exp(-2j * np.pi / n_fft * (products % n_fft))
    return phasors


def _weights(spec: MelSpec, sample_rate_hz: int) -> npt.NDArray[np.float64]:
    return mel_filterbank(
        sample_rate_hz=sample_rate_hz,
        n_fft=spec.n_fft,
        n_mels=spec.n_mels,
        f_min_hz=spec.f_min_hz,
        f_max_hz=spec.f_max_hz,
    )


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _power_of_two(largest: int, at_most: int) -> int:
    """The power of two `largest`, halved until it is at most `at_most`; at least 1."""
    while largest > max(at_most, 1):
        largest //= 2
    return largest
