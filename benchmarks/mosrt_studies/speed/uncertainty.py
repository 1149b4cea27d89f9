"""How fast is the uncertainty of wav2vec v1 beside eager torch, and how does time grow with length?

    mosrt export wav2vec wav2vec_large.pt --layout paper --measure paper.entropy \
        -o paper
    python -m mosrt_studies.speed.uncertainty -m paper --checkpoint wav2vec_large.pt \
        --audio clip.wav -o benchmarks/results/uncertainty_speed.json

The clip is repeated to each length. Each engine and length has a process of its own, so that each
peak of memory is its own; at lengths that torch runs too, both take turns. Torch computes what the
published code does: all logits of the layout "paper", sampled distractors included, and the
measures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import soundfile

from mosrt.bundle.bundle import Bundle, find_bundle
from mosrt.cli.command import exit_on_error, model_option, output_option
from mosrt.uncertainty.family import row_measures
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_bench.worker.process import WorkerProcess
from mosrt_bench.worker.worker import peak_mb, serve
from mosrt_studies.figures.tables import section

from .timing import interleave, ratio, timing

_MODULE: Final = "mosrt_studies.speed.uncertainty"
_LENGTHS_S: Final = (2, 5, 20, 60, 300)


def scored_once(options: dict[str, Any]) -> Callable[[object], dict[str, Any]]:
    """The answer of a worker process to each request: {"ms", "value", "peak_mb"} of one score."""
    clip, rate_hz = soundfile.read(options["audio"], dtype="float32")
    if rate_hz != 16_000 or clip.ndim != 1:
        raise click.UsageError("the clip must be mono at 16 kHz")
    waveform = np.resize(clip, int(options["length_s"]) * rate_hz)
    run = (_mosrt if options["engine"] == "mosrt" else _torch)(options, waveform)

    def answer(_: object) -> dict[str, Any]:
        started = time.perf_counter()
        value = run()
        elapsed_ms = 1e3 * (time.perf_counter() - started)
        return {"ms": elapsed_ms, "value": value, "peak_mb": peak_mb()}

    return answer


def _mosrt(options: dict[str, Any], waveform: Any) -> Callable[[], float]:
    import mosrt  # noqa: PLC0415  # each process imports only its own engine

    scorer = mosrt.load(options["model"], threads=options["threads"], provider="cpu")
    return lambda: scorer.score(waveform, 16_000).measures["uncertainty"]


def _torch(options: dict[str, Any], waveform: Any) -> Callable[[], float]:
    import torch  # noqa: PLC0415

    from mosrt_export.uncertainty.wav2vec.checkpoint import read_wav2vec  # noqa: PLC0415
    from mosrt_export.uncertainty.wav2vec.model import JointNorm  # noqa: PLC0415

    torch.set_num_threads(options["threads"])
    model = read_wav2vec(Path(options["checkpoint"])).build()
    for name, module in list(model.named_modules()):
        # What the published model calls; ours is written for export.
        if isinstance(module, JointNorm) and module.weight is not None:
            norm = torch.nn.GroupNorm(1, len(module.weight))
            norm.load_state_dict(module.state_dict())
            model.set_submodule(name, norm)
    a = model.architecture

    def score() -> float:
        with torch.inference_mode():
            z = model.features(torch.from_numpy(waveform)[None])
            # As published: one transposed convolution for all steps.
            c = model.context(z).unsqueeze(-1)
            p = model.wav2vec_predictions.project_to_steps(c)
            n_frames = z.shape[2]
            index = torch.randint(0, n_frames - 1, (a.n_negatives * n_frames,))
            negatives = z[0][:, index].view(z.shape[1], a.n_negatives, n_frames)
            targets = torch.cat([z, negatives.permute(1, 0, 2)])
            logits = []
            for step in range(min(a.n_steps, n_frames - a.first_horizon)):
                ahead = a.first_horizon + step
                predicted, true = p[0, :, :-ahead, step], targets[:, :, ahead:]
                logits.append(torch.einsum("ct,nct->nt", predicted, true).flatten())
            rows = torch.cat(logits).view(-1, 1 + a.n_negatives).numpy()
        return float(row_measures(rows)[3].mean())

    return score


@click.command()
@model_option("Bundle of the checkpoint", required=True)
@click.option("--checkpoint", required=True, help="The checkpoint, for torch.")
@click.option("--audio", required=True, type=click.Path(exists=True), help="Mono clip at 16 kHz.")
@click.option("--threads", default=2, show_default=True, help="Threads of each engine.")
@click.option("--rounds", default=11, show_default=True, help="Rounds that count.")
@click.option("--torch-up-to", default=20, show_default=True, metavar="SECONDS",
              help="Longest clip that torch runs.")  # fmt: skip
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(
    model: str, checkpoint: str, audio: str, threads: int, rounds: int, torch_up_to: int,
    output: Path,
) -> None:  # fmt: skip
    """Time uncertainty at several lengths: mosrt, and eager torch."""
    manifest = Bundle.open(find_bundle(model)).manifest
    spec = manifest.uncertainty
    if spec is None:
        raise click.UsageError(f"{model} is not an uncertainty model")
    lengths = {}
    for length_s in _LENGTHS_S:
        options = {
            "model": model, "checkpoint": checkpoint, "audio": audio, "threads": threads,
            "length_s": length_s,
        }  # fmt: skip
        click.echo(f"{length_s} s …", err=True)
        names = ("torch", "mosrt") if length_s <= torch_up_to else ("mosrt",)
        lengths[str(length_s)] = _at_length(names, options, max(3, min(rounds, 600 // length_s)))
    seconds = np.array(_LENGTHS_S, np.float64)
    costs = [lengths[str(s)]["timings"]["mosrt"]["median_ms"] for s in _LENGTHS_S]
    result = {
        "question": "waveform in memory to uncertainty, by length of the clip, FP32",
        "command": "python -m mosrt_studies.speed.uncertainty --model … --checkpoint … --audio … "
        f"--threads {threads}",
        "model": manifest.name,
        "layouts": list(spec.layouts),
        "threads": threads,
        "machine": describe(),
        "lengths_s": lengths,
        # 1: time is proportional to length
        "growth_exponent": round(float(np.polyfit(np.log(seconds), np.log(costs), 1)[0]), 3),
    }
    save(result, output)
    click.echo(section("uncertainty_speed", result))


def _at_length(names: tuple[str, ...], options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Timings, peak memory and the speed-up over torch at one length."""
    workers = {name: WorkerProcess({**options, "engine": name}, _MODULE) for name in names}
    answers: dict[str, dict[str, float]] = {}

    def work(name: str) -> Callable[[], float]:
        def once() -> float:
            answers[name] = workers[name].ask({"do": "score"})
            return answers[name]["ms"]

        return once

    try:
        times_ms = interleave({name: work(name) for name in names}, rounds=rounds, warm_up=1)
    finally:
        for worker in workers.values():
            worker.close()
    found: dict[str, Any] = {
        "timings": {name: timing(times) for name, times in times_ms.items()},
        "peak_mb": {name: round(answers[name]["peak_mb"], 1) for name in names},
        "value": {name: answers[name]["value"] for name in names},
    }
    if "torch" in names:
        found["faster"] = ratio(times_ms["torch"], times_ms["mosrt"])
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(scored_once(json.loads(sys.argv[2])))
    else:
        main()
