"""How fast is a score, and how much memory does it take, beside eager torch with librosa?

    python -m mosrt_bench.end_to_end --bundle utmosv2 --checkpoint fold0.pth --audio clip.wav \
        --out benchmarks/results/end_to_end.json

Each contestant lives in a process of its own, so that its peak memory is its own; the processes
work in turn, so that a change of the machine's speed hits both. Waveform in memory at the model's
rate, one view, the same crops for both, score out.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import soundfile

from mosrt import CropGeometry, CropPlan, PlanRule
from mosrt.bundle.bundle import Bundle
from mosrt_studies.speed.timing import interleave, ratio, timing

from .machine import describe


class Worker:
    """A contestant in a process of its own, told when to work.

    Args:
        kind: Which contestant.
        options: What its module's `serve` is given.
        module: The module that serves it.
    """

    def __init__(
        self, kind: str, options: dict[str, Any], module: str = "mosrt_bench.end_to_end"
    ) -> None:
        command = [sys.executable, "-m", module, "--worker", kind]
        self._process = subprocess.Popen(
            [*command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def work(self) -> dict[str, float]:
        """Scores the clip once: {"ms", "mos", "peak_mb"}."""
        self.ask()
        return self.answer()

    def ask(self, line: str = "go", times: int = 1) -> None:
        """Tells the worker to work, and does not wait for it."""
        if self._process.stdin is None:
            raise RuntimeError("the worker has no pipes")
        self._process.stdin.write(f"{line}\n" * times)
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        """Waits for the next answer."""
        if self._process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("a worker died; its message is above")
        answer: dict[str, float] = json.loads(line)
        return answer


def serve(kind: str, options: dict[str, Any]) -> None:
    """What a worker process does: score once for every line of input."""
    waveform, rate_hz = soundfile.read(options["audio"], dtype="float32")
    plan = PlanRule.parse(options["plan"], 1).plan(len(waveform), CropGeometry())
    run = (_mosrt if kind == "mosrt" else _torch)(options, waveform, rate_hz, plan)
    for _ in sys.stdin:
        started = time.perf_counter()
        mos = run()
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps({"ms": elapsed_ms, "mos": mos, "peak_mb": peak_mb}), flush=True)


def _mosrt(
    options: dict[str, Any], waveform: Any, rate_hz: int, plan: CropPlan
) -> Callable[[], float | None]:
    import mosrt  # noqa: PLC0415  # each worker imports its own half

    scorer = mosrt.load(options["bundle"], threads=options["threads"], provider="cpu")
    return lambda: scorer.score(waveform, rate_hz, plan=plan).mos


def _torch(
    options: dict[str, Any], waveform: Any, rate_hz: int, plan: CropPlan
) -> Callable[[], float]:
    from .bench.torch_baseline import TorchBaseline  # noqa: PLC0415

    manifest = Bundle.open(options["bundle"]).manifest
    baseline = TorchBaseline(Path(options["checkpoint"]), manifest, threads=options["threads"])
    return lambda: baseline.score(waveform, rate_hz, plan)


@click.command()
@click.option("--bundle", required=True, help="Fusion bundle made from the checkpoint.")
@click.option("--checkpoint", required=True, help="The checkpoint, for the baseline.")
@click.option("--audio", required=True, type=click.Path(exists=True), help="A clip over 3 s.")
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--plan",
    default="grid",
    show_default=True,
    metavar="grid|reference:SEED",
    help="Crops: evenly spaced, or as the published code draws and mixes them.",
)
@click.option("--rounds", default=15, show_default=True, help="Counted rounds.")
@click.option("--weights", default="stand-in", show_default=True, help="What the weights are.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    bundle: str,
    checkpoint: str,
    audio: str,
    threads: int,
    plan: str,
    rounds: int,
    weights: str,
    out: Path,
) -> None:
    """Time one view end to end: mosrt, and eager torch with a librosa front end."""
    options = {
        "bundle": bundle,
        "checkpoint": checkpoint,
        "audio": audio,
        "threads": threads,
        "plan": plan,
    }
    answers: dict[str, dict[str, float]] = {}
    with Worker("torch", options) as torch, Worker("mosrt", options) as mosrt:
        workers = {"torch and librosa": torch, "mosrt": mosrt}

        def work(name: str) -> Callable[[], float]:
            def once() -> float:
                answers[name] = workers[name].work()
                return answers[name]["ms"]

            return once

        with click.progressbar(length=rounds + 2, file=sys.stderr) as bar:
            times_ms = interleave(
                {name: work(name) for name in workers},
                rounds=rounds,
                warm_up=2,
                progress=bar.update,
            )
    baseline, ours = answers["torch and librosa"], answers["mosrt"]
    result = {
        "question": "waveform in memory to score, one view, FP32",
        "command": f"python -m mosrt_bench.end_to_end --bundle … --checkpoint … "
        f"--audio {Path(audio).name} --threads {threads} --plan {plan} --rounds {rounds}",
        "plan": plan,
        "clip_s": round(soundfile.info(audio).duration, 3),
        "weights": weights,
        "threads": threads,
        "machine": describe(),
        "mos": {name: answer["mos"] for name, answer in answers.items()},
        "mos_difference": abs(baseline["mos"] - ours["mos"]),
        "timings": {name: timing(times) for name, times in times_ms.items()},
        "faster": ratio(times_ms["torch and librosa"], times_ms["mosrt"]),
        "peak_mb": {name: round(answer["peak_mb"], 1) for name, answer in answers.items()},
        "peak_ratio": round(ours["peak_mb"] / baseline["peak_mb"], 3),
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, times in result["timings"].items():
        click.echo(
            f"{name}: {times['median_ms']:.0f} ms {times['interval_95_ms']}, "
            f"peak {result['peak_mb'][name]:.0f} MB, mos {result['mos'][name]:.5f}"
        )
    faster = result["faster"]
    click.echo(f"{faster['ratio']:.2f} times as fast {faster['interval_95']}")
    click.echo(f"{result['peak_ratio']:.2f} of the memory")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
