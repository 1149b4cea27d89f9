"""What does a score by an embedded model cost, beside DNSMOS P.808?

    python -m mosrt_studies.speed.embedded --teachers TEACHERS --audio clip.wav --clips tests/data \
        -o benchmarks/results/embedded.json

Measures the CPU time of a 5 s clip in memory at 16 kHz, front end included, on one thread: the
model of mosrt, and DNSMOS P.808 with its published front end, librosa's, in turn. Then fresh
processes run `mosrt score` on --clips: their wall-clock time and their peak memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import librosa
import numpy as np

import mosrt
from mosrt._arrays import Float32Array
from mosrt.bundle.bundle import DEFAULT_MODEL
from mosrt.cli.command import exit_on_error, model_option, output_option
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_export.nano.data.dnsmos import DnsmosP808
from mosrt_export.nano.data.voices import read
from mosrt_studies.accuracy.peers import TEACHERS, PeerError
from mosrt_studies.figures.tables import section

from .timing import interleave, ratio, timed, timing

__all__ = ["P808", "p808_image", "peak_mb", "process_ms"]


_RATE_HZ: Final = 16_000
_CLIP_SAMPLES: Final = 80_000
_P808_SAMPLES: Final = 144_160  # 9.01 s
_RUN: Final = "from mosrt.cli.main import main; main()"
_RUN_AND_MEASURE: Final = """
import sys
from mosrt.cli.main import main
main(sys.argv[1:], standalone_mode=False)
from mosrt_bench.worker.worker import peak_mb
print(peak_mb(), file=sys.stderr)
"""


class P808:
    """DNSMOS P.808 as its authors run it (DNS-Challenge, dnsmos_local.py), on one thread."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise PeerError(f"{path} is missing; pass --teachers its folder")
        self._session = DnsmosP808(path).session
        self._input = self._session.get_inputs()[0].name

    def __call__(self, waveform: Float32Array) -> float:
        """Predicted MOS of at most 9.01 s (samples,) at 16 kHz."""
        while len(waveform) < _P808_SAMPLES:
            waveform = np.concatenate([waveform, waveform])
        feed = {self._input: p808_image(waveform[:_P808_SAMPLES])}
        (output,) = self._session.run(None, feed)
        return float(output[0, 0])


def p808_image(window: Float32Array) -> Float32Array:
    """The input (1, frames, 120) of DNSMOS P.808 for a window (144160,) at 16 kHz, by librosa."""
    mel = librosa.feature.melspectrogram(
        y=window[:-160], sr=_RATE_HZ, n_fft=321, hop_length=160, n_mels=120
    )
    level_db = librosa.power_to_db(mel, ref=np.max)
    image: Float32Array = ((level_db.T + 40) / 40)[np.newaxis].astype(np.float32)
    return image


def process_ms(arguments: Sequence[str]) -> float:
    """Wall-clock time in ms of a fresh process that runs `mosrt` with `arguments`."""
    started = time.perf_counter()
    _fresh(_RUN, arguments)
    return 1e3 * (time.perf_counter() - started)


def peak_mb(arguments: Sequence[str]) -> tuple[float, int]:
    """Runs `mosrt` with `arguments` in a fresh process; not on Windows.

    Returns:
        Its peak resident memory in MB (1e6 bytes), and the number of lines it printed.
    """
    done = _fresh(_RUN_AND_MEASURE, arguments)
    return float(done.stderr.splitlines()[-1]), len(done.stdout.splitlines())


def _fresh(code: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a fresh Python process to its end.

    Raises:
        PeerError: It failed.
    """
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"mosrt {arguments[0]} failed: {done.stderr.strip()}")
    return done


@click.command()
@model_option("Model to measure")
@click.option("--teachers", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help=f"Folder of the published model {TEACHERS['DNSMOS P.808']}.")  # fmt: skip
@click.option("--audio", required=True,
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Speech, from which a clip of 5 s is made.")  # fmt: skip
@click.option("--clips", required=True, multiple=True,
              type=click.Path(exists=True, path_type=Path),
              help="Files or folders for `mosrt score`; may be repeated.")  # fmt: skip
@click.option("--rounds", default=51, show_default=True, type=click.IntRange(min=15),
              help="Rounds of scores that count.")  # fmt: skip
@click.option("--starts", default=15, show_default=True, type=click.IntRange(min=15),
              help="Fresh processes whose wall-clock time is measured.")  # fmt: skip
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(
    model: str | None, teachers: Path, audio: Path, clips: tuple[Path, ...], rounds: int,
    starts: int, output: Path,
) -> None:  # fmt: skip
    """Time an embedded model beside DNSMOS P.808, and measure the command `mosrt score`."""
    p808 = P808(teachers / TEACHERS["DNSMOS P.808"])
    chosen = model or DEFAULT_MODEL
    arguments = ["score", "--model", chosen, "--format", "jsonl", *(str(path) for path in clips)]
    peak, n_files = peak_mb(arguments)
    clip = np.resize(read(audio), _CLIP_SAMPLES)
    with (
        mosrt.load(chosen, threads=1, provider="cpu") as scorer,
        click.progressbar(length=rounds + 3, file=sys.stderr, label="scores") as bar,
    ):
        name = scorer.manifest.name
        # the time of all threads of this process
        cpu_timed = partial(timed, clock_s=time.process_time, blas_threads=1)
        configurations = {
            name: cpu_timed(lambda: scorer.score(clip, _RATE_HZ)),
            "DNSMOS P.808": cpu_timed(lambda: p808(clip)),
        }
        times_ms = interleave(configurations, rounds=rounds, warm_up=3, progress=bar.update)
    command = f"mosrt score, {n_files} files, fresh process, on the clock"
    with click.progressbar(length=starts + 1, file=sys.stderr, label="processes") as bar:
        times_ms |= interleave(
            {command: lambda: process_ms(arguments)}, rounds=starts, progress=bar.update
        )
    faster = ratio(times_ms["DNSMOS P.808"], times_ms[name])
    run: dict[str, Any] = {
        "question": "CPU time of a score of a 5 s clip on one thread, front end included",
        "command": "python -m mosrt_studies.speed.embedded --model … --teachers … "
        f"--audio {audio.name} "
        f"{'--clips … ' * len(clips)}--rounds {rounds} --starts {starts}",
        "model": name,
        "machine": describe(),
        "timings": {configuration: timing(times) for configuration, times in times_ms.items()},
        "faster_than_p808": faster,
        "process": command,
        "files": n_files,
        "peak_mb": round(peak, 1),
    }
    save(run, output)
    click.echo(section("embedded", run))


if __name__ == "__main__":
    main()
