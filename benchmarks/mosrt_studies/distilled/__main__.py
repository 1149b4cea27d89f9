"""How far does a trained UTMOSv2 of the published size drift? This makes its checkpoint.

    python -m mosrt_studies.distilled --speech SPEECH -o distilled.pth
    mosrt export utmosv2 distilled.pth -o distilled

The model is trained to predict the scores of `nano`. It is no substitute for UTMOSv2, which is
trained on listeners' ratings; it only makes sure that drift is measured on a trained network with a
known target. Training ends after a given time, so another machine gives other weights; the
checkpoint's hash is in the bundle.
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

from mosrt.cli.command import exit_on_error, output_option
from mosrt.host.files import replacing
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_export.utmosv2.config import PUBLISHED_DOMAINS, ModelConfig
from mosrt_export.utmosv2.fusion import Fusion
from mosrt_export.utmosv2.spectrogram import build_backbone

from .training import (
    TrainingData,
    calibrate_norms,
    fit_head,
    make_training_data,
    predictions,
    train_backbone,
    train_branches,
    train_waveform,
)


@click.command()
@click.option("--speech", type=click.Path(path_type=Path, exists=True), required=True,
              metavar="DIR", help="Folder with a folder of FLAC recordings per voice.")  # fmt: skip
@output_option("Checkpoint to write.", required=True)
@click.option("--clips", default=1500, show_default=True, help="Clips to train on.")
@click.option("--held-out", default=24, show_default=True, help="Clips to measure on.")
@click.option("--norm-clips", default=16, show_default=True, help="Clips for batch norms.")
@click.option("--head-clips", default=64, show_default=True, help="Clips for the head.")
@click.option("--minutes", nargs=3, type=float, default=(25, 12, 25), show_default=True,
              help="For the backbone, the waveform branch, and both together.")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True),
              help="Another architecture, as for `mosrt export utmosv2`.")  # fmt: skip
@click.option("--threads", default=2, show_default=True, help="Threads of torch.")
@click.option("--seed", default=0, show_default=True, help="Seed of data and training.")
@exit_on_error()
def main(
    speech: Path, output: Path, clips: int, held_out: int, norm_clips: int, head_clips: int,
    minutes: tuple[float, float, float], config_file: Path | None, threads: int, seed: int,
) -> None:  # fmt: skip
    """Train in three stages, each kept beside OUTPUT, and write the result as OUTPUT.json."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    config = ModelConfig() if config_file is None else ModelConfig.from_toml(config_file)
    data = make_training_data(speech, clips, config.spectrogram, seed, held_out=False)
    click.echo(f"{clips} clips, targets {data.targets.min():.2f} to {data.targets.max():.2f}")
    backbone = build_backbone(config.spectrogram.backbone)
    model = Fusion(config, len(config.domains or PUBLISHED_DOMAINS)).eval()
    stage = train_backbone(backbone, data, minutes[0], seed)
    _resume(output.with_suffix(".backbone.pth"), backbone, stage)
    stage = train_waveform(model, data, minutes[1], seed)
    _resume(output.with_suffix(".ssl.pth"), model.ssl, stage)
    stage = train_branches(model, backbone, data, minutes[2], seed)
    _resume(output.with_suffix(".branches.pth"), model, stage)
    _follow(calibrate_norms(model, data, norm_clips, seed))
    _follow(fit_head(model, data, head_clips, seed))
    unseen = make_training_data(speech, held_out, config.spectrogram, seed + 1, held_out=True)
    result = _result(model, unseen, seed)
    with replacing(output) as part:
        torch.save(model.state_dict(), part)
    run = {
        "question": "does a UTMOSv2 of full size, trained briefly, say what nano says?",
        "command": "python -m mosrt_studies.distilled --speech … --output … "
        f"--clips {clips} --held-out {held_out} --norm-clips {norm_clips} "
        f"--head-clips {head_clips} --minutes {' '.join(f'{m:g}' for m in minutes)} "
        f"--threads {threads} --seed {seed}",
        "machine": describe(),
        **result,
    }
    save(run, output.with_suffix(".json"))
    click.echo(json.dumps(run, indent=2))


def _resume(path: Path, module: nn.Module, stage: Iterator[str]) -> None:
    """Loads the weights of an earlier run from `path`, or trains the module and saves them."""
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
        return
    _follow(stage)
    with replacing(path) as part:
        torch.save(module.state_dict(), part)


def _follow(stage: Iterator[str]) -> None:
    for message in stage:
        click.echo(message)


def _result(model: Fusion, unseen: TrainingData, seed: int) -> dict[str, Any]:
    """Scores of clips that neither `nano` nor the model was trained on, beside those of `nano`."""
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
