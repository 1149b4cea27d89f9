"""Which measure and layout of an uncertainty model ranks degraded speech best?

    python -m mosrt_studies.accuracy.uncertainty_ranking -m nano-uncertainty --speech SPEECH \
        --held-out -o benchmarks/results/uncertainty_ranking.json

Clean clips are degraded in several ways, at several severities each. The result is Spearman's rank
correlation of severity and signed measure, for each degradation, layout and measure: on the ladder
of one clip (does the measure follow severity when all else is equal?) and over all clips pooled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import scipy.signal
import scipy.stats
import soundfile
import soxr

import mosrt
from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt.cli.command import exit_on_error, model_option, output_option
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_export.nano.data.voices import held_out_file
from mosrt_studies.figures.render import section

__all__ = ["DEGRADATIONS", "correlations", "ladder"]

Waveform = npt.NDArray[np.float64]
Degradation = Callable[[Waveform, float, np.random.Generator], Waveform]

RATE_HZ: Final = 16_000


def _noise(clip: Waveform, snr_db: float, rng: np.random.Generator) -> Waveform:
    noise: Waveform = rng.standard_normal(len(clip))
    noise *= np.sqrt(np.mean(clip**2) / 10 ** (snr_db / 10))
    return clip + noise


def _babble(clip: Waveform, snr_db: float, rng: np.random.Generator) -> Waveform:
    """Noise with the spectrum of the clip and random phases."""
    spectrum = np.abs(np.fft.rfft(clip))
    phases = np.exp(2j * np.pi * rng.random(len(spectrum)))
    noise = np.fft.irfft(spectrum * phases, len(clip))
    noise *= np.sqrt(np.mean(clip**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    return clip + noise


def _reverberation(clip: Waveform, rt60_s: float, rng: np.random.Generator) -> Waveform:
    n = int(rt60_s * RATE_HZ)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    response = np.concatenate([[1.0], 0.5 * tail / np.sqrt(np.sum(tail**2))])
    return np.asarray(scipy.signal.fftconvolve(clip, response)[: len(clip)])


def _low_pass(clip: Waveform, cutoff_hz: float, _: np.random.Generator) -> Waveform:
    sos = scipy.signal.butter(8, cutoff_hz, fs=RATE_HZ, output="sos")
    return np.asarray(scipy.signal.sosfiltfilt(sos, clip))


def _clipping(clip: Waveform, share: float, _: np.random.Generator) -> Waveform:
    limit = np.quantile(np.abs(clip), 1 - share)
    return np.clip(clip, -limit, limit)


def _dropouts(clip: Waveform, share: float, rng: np.random.Generator) -> Waveform:
    """Losses of 20 ms packets."""
    length = RATE_HZ // 50
    lost = rng.random(len(clip) // length + 1) < share
    return np.where(np.repeat(lost, length)[: len(clip)], 0.0, clip)


def _bits(clip: Waveform, bits: float, _: np.random.Generator) -> Waveform:
    steps = 2.0 ** (bits - 1)
    rounded: Waveform = np.round(clip * steps) / steps
    return rounded


DEGRADATIONS: Final[dict[str, tuple[Degradation, tuple[float, ...]]]] = {
    "white noise, SNR dB": (_noise, (40, 30, 20, 10, 5, 0)),
    "speech-shaped noise, SNR dB": (_babble, (40, 30, 20, 10, 5, 0)),
    "reverberation, RT60 s": (_reverberation, (0.1, 0.2, 0.4, 0.8, 1.6)),
    "low pass, Hz": (_low_pass, (7000, 5000, 3500, 2000, 1000)),
    "clipping, share": (_clipping, (0.01, 0.05, 0.1, 0.2, 0.4)),
    "lost packets, share": (_dropouts, (0.02, 0.05, 0.1, 0.2, 0.4)),
    "quantisation, bits": (_bits, (12, 10, 8, 6, 4)),
}
"""The function of each degradation and its strengths, from the mildest to the strongest."""


def ladder(clip: Waveform, name: str, seed: int) -> list[npt.NDArray[np.float32]]:
    """A clip at increasing severity, the clean clip first, all at the same level."""
    degrade, strengths = DEGRADATIONS[name]
    level = np.sqrt(np.mean(clip**2))
    rungs = [clip]
    for strength in strengths:
        rung = degrade(clip, strength, np.random.default_rng(seed))
        rungs.append(rung * (level / max(float(np.sqrt(np.mean(rung**2))), 1e-9)))
    return [rung.astype(np.float32) for rung in rungs]


def correlations(
    rungs: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, dict[str, float | bool]]:
    """Rank correlation with severity by measure: mean over clips, and pooled.

    Args:
        rungs: By measure, the values of each clip at increasing severity.
    """
    found: dict[str, dict[str, float | bool]] = {}
    for measure, clips in rungs.items():
        each = [float(scipy.stats.spearmanr(range(len(c)), c).statistic) for c in clips]
        severity = [i for clip in clips for i in range(len(clip))]
        pooled = scipy.stats.spearmanr(severity, [v for clip in clips for v in clip]).statistic
        monotone = np.all(np.diff(np.mean(np.array(clips), axis=0)) > 0)
        found[measure] = {
            "per_clip": round(float(np.mean(each)), 4),
            "pooled": round(float(pooled), 4),
            "mean_is_monotone": bool(monotone),
        }
    return found


@click.command()
@model_option("Uncertainty model to evaluate", required=True)
@click.option("--speech", required=True, type=click.Path(exists=True, path_type=Path),
              metavar="DIR", help="Folder of recordings, searched whole.")  # fmt: skip
@click.option("--held-out", is_flag=True,
              help="Use only recordings that the embedded models were not trained on.")  # fmt: skip
@click.option("--clips", default=20, show_default=True, help="Clips, spread over the folder.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of a clip, in seconds.")
@click.option("--threads", default=2, show_default=True, help="Threads of the model.")
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(
    model: str, speech: Path, held_out: bool, clips: int, seconds: float, threads: int,
    output: Path,
) -> None:  # fmt: skip
    """Measure how each measure of an uncertainty model ranks degraded speech."""
    waveforms = _clips(speech, clips, seconds, held_out=held_out)
    result: dict[str, Any] = {
        "question": "Spearman correlation of severity and measure, per degradation",
        "command": "python -m mosrt_studies.accuracy.uncertainty_ranking --model … --speech … "
        f"{'--held-out ' * held_out}--clips {clips} --seconds {seconds:g}",
        "clips": len(waveforms),
        "seconds": seconds,
        "machine": describe(),
        "degradations": {},
    }
    with (
        mosrt.load(model, threads=threads, on_bad_audio="nan") as scorer,
        click.progressbar(length=len(DEGRADATIONS) * len(waveforms), file=sys.stderr) as bar,
    ):
        result["model"] = scorer.manifest.name
        for name in DEGRADATIONS:
            values: dict[str, list[list[float]]] = {}
            for seed, clip in enumerate(waveforms):
                scores = [scorer.score(rung, RATE_HZ) for rung in ladder(clip, name, seed)]
                for measure in scorer.measures[1:]:
                    sign = 1 if measure.endswith(".entropy") else -1
                    values.setdefault(measure, []).append(
                        [sign * score.measures[measure] for score in scores]
                    )
                bar.update(1)
            result["degradations"][name] = correlations(values)
    save(result, output)
    click.echo(section("uncertainty_ranking", result))


def _clips(speech: Path, n: int, seconds: float, *, held_out: bool) -> list[Waveform]:
    """Clips of one length, mono at 16 kHz, spread evenly over the recordings."""
    files = sorted(
        file
        for file in speech.rglob("*")
        if file.suffix.lower() in AUDIO_SUFFIXES and (held_out_file(file) or not held_out)
    )
    long_enough = [file for file in files if soundfile.info(file).duration > seconds]
    if len(long_enough) < n:
        raise click.UsageError(
            f"{speech}: {len(long_enough)} recordings of at least {seconds:g} s, not {n}"
        )
    found = []
    for i in np.linspace(0, len(long_enough) - 1, n).astype(int):
        samples, rate_hz = soundfile.read(long_enough[i], dtype="float64", always_2d=True)
        clip = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)[: int(seconds * RATE_HZ)]
        found.append(clip)
    return found


if __name__ == "__main__":
    main()
