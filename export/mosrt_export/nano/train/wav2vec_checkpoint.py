"""Checkpoints of the pretrained wav2vec v1 model, in the layout of the published one."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from mosrt.host.files import replacing
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec

__all__ = ["save_wav2vec"]


def save_wav2vec(path: Path, model: Wav2Vec, provenance: dict[str, Any]) -> None:
    """Writes a checkpoint that `mosrt export wav2vec` reads: `args` and `model`, as fairseq does.

    Args:
        path: Where.
        model: Of the recipe's architecture.
        provenance: Plain values that say where it comes from.
    """
    a = model.architecture
    args = Namespace(
        arch="wav2vec",
        conv_feature_layers=str(list(a.encoder_layers)),
        conv_aggregator_layers=str(list(a.context_layers)),
        prediction_steps=a.n_steps,
        num_negatives=a.n_negatives,
        sample_distance=None,
        cross_sample_negatives=0,
        offset="auto",
        activation=a.activation,
        log_compression=a.log_compression,
        skip_connections_feat=a.encoder_skip,
        skip_connections_agg=a.context_skip,
        residual_scale=0.5,
        no_conv_bias=not a.context_bias,
        agg_zero_pad=a.zero_pad,
        non_affine_group_norm=not a.affine_norm,
        aggregator="cnn",
        vq_type="none",
        balanced_classes=False,
        dropout=0.0,
        dropout_features=0.0,
        dropout_agg=0.0,
        infonce=True,
        project_features="none",
        no_group_norm=False,
    )
    with replacing(path) as part:
        torch.save({"args": args, "model": model.state_dict(), "provenance": provenance}, part)
