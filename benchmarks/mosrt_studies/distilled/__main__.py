"""Trains a UTMOSv2 of full size to say what `nano` says: weights that quantisation can be tried on.

    python -m mosrt_bench.distilled --speech SPEECH --out distilled.pth
    mosrt export utmosv2 --checkpoint distilled.pth --out distilled

Real weights of UTMOSv2 are trained on listeners' ratings and are another matter; these only make
sure that drift is measured on a function that was learned, with a target that is known. Stops by
the clock, so that another machine gives other weights; the checkpoint's hash is in the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import nn

from mosrt.host.files import replacing
from mosrt_bench.machine import describe
from mosrt_export.utmosv2.config import PUBLISHED_DOMAINS, ModelConfig
from mosrt_export.utmosv2.fusion import Fusion
from mosrt_export.utmosv2.spectrogram import build_backbone

from .data import Lessons, make_lessons
from .stages import (
    calibrate_norms,
    fit_head,
    predictions,
    train_backbone,
    train_branches,
    train_waveform,
)


@click.command()
@click.option("--speech", type=click.Path(path_type=Path, exists=True), required=True,
              help="A folder of FLAC recordings per voice.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint.")
@click.option("--clips", default=1500, show_default=True, help="Clips to train on.")
@click.option("--held-out", default=24, show_default=True, help="Clips to measure on.")
@click.option("--norm-clips", default=16, show_default=True, help="Clips for batch norms.")
@click.option("--head-clips", default=64, show_default=True, help="Clips for the head.")
@click.option("--minutes", nargs=3, type=float, default=(25, 12, 25), show_default=True,
              help="For the backbone, the waveform branch, and both together.")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True),
              help="Another architecture, as for `mosrt export utmosv2`.")  # fmt: skip
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--seed", default=0, show_default=True)
def main(
    speech: Path,
    out: Path,
    clips: int,
    held_out: int,
    norm_clips: int,
    head_clips: int,
    minutes: tuple[float, float, float],
    config_file: Path | None,
    threads: int,
    seed: int,
) -> None:
    """Trains in three stages, each kept beside OUT, and writes what it came to as OUT.json."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    config = ModelConfig() if config_file is None else ModelConfig.from_toml(config_file)
    lessons = make_lessons(speech, clips, config.spectrogram, seed, held_out=False)
    click.echo(f"{clips} clips, targets {lessons.targets.min():.2f} to {lessons.targets.max():.2f}")
    backbone = build_backbone(config.spectrogram.backbone)
    model = Fusion(config, len(config.domains or PUBLISHED_DOMAINS)).eval()
    stage = train_backbone(backbone, lessons, minutes[0], seed)
    _resume(out.with_suffix(".backbone.pth"), backbone, stage)
    stage = train_waveform(model, lessons, minutes[1], seed)
    _resume(out.with_suffix(".ssl.pth"), model.ssl, stage)
    stage = train_branches(model, backbone, lessons, minutes[2], seed)
    _resume(out.with_suffix(".branches.pth"), model, stage)
    _follow(calibrate_norms(model, lessons, norm_clips, seed))
    _follow(fit_head(model, lessons, head_clips, seed))
    unseen = make_lessons(speech, held_out, config.spectrogram, seed + 1, held_out=True)
    result = _result(model, unseen, seed)
    with replacing(out) as part:
        torch.save(model.state_dict(), part)
    run = {
        "question": "does a UTMOSv2 of full size, trained briefly, say what nano says?",
        "command": "python -m mosrt_bench.distilled --speech … --out … "
        f"--clips {clips} --held-out {held_out} --norm-clips {norm_clips} "
        f"--head-clips {head_clips} --minutes {' '.join(f'{m:g}' for m in minutes)} "
        f"--threads {threads} --seed {seed}",
        "machine": describe(),
        **result,
    }
    text = json.dumps(run, indent=2)
    with replacing(out.with_suffix(".json")) as part:
        part.write_text(f"{text}\n", encoding="utf-8")
    click.echo(text)


def _resume(path: Path, module: nn.Module, stage: Iterator[str]) -> None:
    """Takes a module's weights from an earlier run's `path`, or trains it and keeps them there."""
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
        return
    _follow(stage)
    with replacing(path) as part:
        torch.save(module.state_dict(), part)


def _follow(stage: Iterator[str]) -> None:
    for message in stage:
        click.echo(message)


def _result(model: Fusion, unseen: Lessons, seed: int) -> dict[str, Any]:
    """Scores of clips that neither nano nor the model was trained on, beside nano's."""
    pairs = np.array(list(predictions(model, unseen, seed)))
    targets, scores = pairs.T
    return {
        "held_out_clips": len(pairs),
        "mean_abs_error_mos": float(np.abs(scores - targets).mean()),
        "lcc": float(pearsonr(targets, scores).statistic),
        "srcc": float(spearmanr(targets, scores).statistic),
        "targets": targets.round(3).tolist(),
        "scores": scores.round(3).tolist(),
    }


if __name__ == "__main__":
    main()
