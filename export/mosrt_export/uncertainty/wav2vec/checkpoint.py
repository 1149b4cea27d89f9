"""Reads checkpoints of wav2vec v1 and vq-wav2vec without running code that is in them.

Three layouts are supported: fairseq's with `args` (an argparse namespace), fairseq's with `cfg`,
and s3prl's conversion with `model_cfg` and `model_weight`.
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from mosrt_export.errors import CheckpointError
from mosrt_export.utmosv2.checkpoint import StateFile, load_safely, load_strictly, tensors_of

from .model import Architecture, Layer, QuantizerSpec, Wav2Vec

__all__ = ["Wav2VecCheckpoint", "architecture_of", "read_wav2vec"]

_MAX_LAYERS: Final = 64
_MAX_SIZE: Final = 65_536
_MAX_COUNT: Final = 1_000
_MAX_TEXT: Final = 4_096
_SUPPORTED: Final = {  # the usual value first
    "aggregator": ("cnn",),
    "project_features": ("none",),
    "activation": ("relu", "gelu"),
}
_CURE: Final = (
    "where the file was made, save {'args': the model's options as a plain dict, 'model': "
    "model.state_dict()} with torch.save"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav2VecCheckpoint(StateFile):
    """A wav2vec v1 or vq-wav2vec network.

    Attributes:
        architecture: Read from the options in the file.
    """

    architecture: Architecture

    def build(self) -> Wav2Vec:
        """The network in evaluation mode, weights loaded.

        Raises:
            CheckpointError: The weights do not fit the architecture that the options describe.
        """
        with torch.device("meta"):  # no memory before the weights are known to have these shapes
            model = Wav2Vec(self.architecture)
        load_strictly(model, self, cure="its options and weights contradict each other")
        return model.eval()


def read_wav2vec(path: Path) -> Wav2VecCheckpoint:
    """Reads a checkpoint file.

    Raises:
        CheckpointError: The file cannot be read safely, or is another kind of model.
    """
    loaded = load_safely(path, allowed=(argparse.Namespace,), cure=_CURE)
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: holds {type(loaded).__name__}, not a checkpoint")
    weights = loaded.get("model_weight", loaded.get("model"))
    if weights is None:
        raise CheckpointError(f"{path}: has no weights under 'model' or 'model_weight'")
    state = tensors_of(weights, path)
    _check_kind(state, path)
    options = _options(loaded, path)
    return Wav2VecCheckpoint(path=path, state=state, architecture=architecture_of(options, path))


def _options(loaded: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The model's options, whatever the layout."""
    found = loaded.get("model_cfg")
    if found is None and isinstance(loaded.get("cfg"), Mapping):
        found = loaded["cfg"].get("model")
    if found is None:
        found = loaded.get("args")
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path}: has no options of the architecture under 'args', 'cfg' or 'model_cfg'; use "
            "the complete checkpoint, not the weights alone"
        )
    return found


def _check_kind(state: Mapping[str, torch.Tensor], path: Path) -> None:
    heads = {key.split(".", 1)[0] for key in state}
    if "mask_emb" in heads or any("encoder.layers." in key for key in state):
        raise CheckpointError(
            f"{path}: a wav2vec 2.0 model, not wav2vec v1 (wav2vec_small.pt is one, too); export "
            "its transformers form with `mosrt export wav2vec2 facebook/wav2vec2-base --head "
            "pretraining`, or use wav2vec_large.pt"
        )
    missing = {"feature_extractor", "feature_aggregator", "wav2vec_predictions"} - heads
    if missing:
        raise CheckpointError(
            f"{path}: not a wav2vec v1 model: it has no {' and no '.join(sorted(missing))}"
        )


def architecture_of(options: Mapping[str, Any], path: Path) -> Architecture:
    """Reads the architecture from fairseq's model options.

    Options that are missing from a file were added to fairseq later; they take the values that
    keep the earlier behaviour.

    Raises:
        CheckpointError: An option is missing, malformed or not supported.
    """
    get = options.get
    for name, supported in _SUPPORTED.items():
        if (value := get(name, supported[0])) not in supported:
            raise CheckpointError(
                f"{path}: {name} {value!r}; mosrt supports only {' and '.join(supported)}"
            )
    encoder = _layers(options, "conv_feature_layers", path)
    context = _layers(options, "conv_aggregator_layers", path)
    if any(stride != 1 for _, _, stride in context):
        raise CheckpointError(f"{path}: conv_aggregator_layers must have stride 1")
    scale = _number(options, "residual_scale", 0.1, path)
    return Architecture(
        encoder_layers=encoder,
        context_layers=context,
        n_steps=_count(options, "prediction_steps", 12, path),
        n_negatives=_count(options, "num_negatives", 10, path),
        offset=None if get("offset", "auto") == "auto" else _count(options, "offset", 1, path),
        activation=get("activation", "relu"),
        log_compression=bool(get("log_compression", False)),
        encoder_skip=bool(get("skip_connections_feat", False)),
        context_skip=bool(get("skip_connections_agg", False)),
        residual_scale=math.sqrt(scale),
        context_bias=not get("no_conv_bias", False),
        zero_pad=bool(get("agg_zero_pad", False)),
        affine_norm=not get("non_affine_group_norm", False),
        quantizer=_quantizer(options, encoder[-1][0], path),
    )


def _quantizer(options: Mapping[str, Any], channels: int, path: Path) -> QuantizerSpec | None:
    kind = options.get("vq_type", "none")
    if kind == "none":
        return None
    if kind not in ("gumbel", "kmeans"):
        raise CheckpointError(f"{path}: vq_type {kind!r}; only gumbel and kmeans are supported")
    groups = _count(options, "vq_groups", 2, path)
    # 0 means as many as the encoder has.
    quantised = _count({"vq_dim": options.get("vq_dim") or channels}, "vq_dim", 0, path, _MAX_SIZE)
    if quantised % groups or (kind == "kmeans" and quantised != channels):
        raise CheckpointError(
            f"{path}: vq_dim {quantised} does not suit {groups} groups of {channels} channels"
        )
    return QuantizerSpec(
        kind=kind,
        n_codes=_count(options, "vq_vars", 320, path, _MAX_SIZE),
        n_groups=groups,
        shared_codes=bool(options.get("combine_groups", False)),
        channels=quantised,
        depth=_count(options, "vq_depth", 1, path, _MAX_LAYERS),
    )


def _number(options: Mapping[str, Any], name: str, default: float, path: Path) -> float:
    """A positive, finite option."""
    try:
        value = float(options.get(name, default))
    except (OverflowError, TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise CheckpointError(
            f"{path}: {name} is {_shown(options.get(name))}, not a positive number"
        )
    return value


def _count(
    options: Mapping[str, Any], name: str, default: int, path: Path, largest: int = _MAX_COUNT
) -> int:
    """A whole option from 1 to `largest`."""
    value = _number(options, name, default, path)
    if value > largest or value != int(value):
        raise CheckpointError(
            f"{path}: {name} is {_shown(options.get(name))}, not a positive integer up to {largest}"
        )
    return int(value)


def _layers(options: Mapping[str, Any], name: str, path: Path) -> tuple[Layer, ...]:
    """A list of (channels, kernel, stride), stored as a list or as Python source."""
    value = options.get(name)
    try:
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise ValueError(name)
        layers = _list(ast.parse(value, mode="eval").body) if isinstance(value, str) else value
        if isinstance(layers, (list, tuple)) and 0 < len(layers) <= _MAX_LAYERS:
            checked = tuple((int(a), int(b), int(c)) for a, b, c in layers)
            if all(min(layer) > 0 and max(layer) <= _MAX_SIZE for layer in checked):
                return checked
    except (OverflowError, RecursionError, SyntaxError, TypeError, ValueError):
        pass
    raise CheckpointError(
        f"{path}: {name} is {_shown(value)}, not a list of layers (channels, kernel, stride), at "
        f"most {_MAX_LAYERS} and no number above {_MAX_SIZE}"
    )


def _list(node: ast.AST) -> list[Any]:
    """Evaluates Python source: lists, their sums, and lists times an integer; nothing else."""
    found: Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        found = _list(node.left) + _list(node.right)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        found = _list(node.left) * min(ast.literal_eval(node.right), _MAX_LAYERS + 1)
    else:
        found = ast.literal_eval(node)
    # Checked at each step, because products of products grow fast.
    if not isinstance(found, (list, tuple)) or len(found) > _MAX_LAYERS:
        raise ValueError("not a list of layers")
    return list(found)


def _shown(value: object) -> str:
    return repr(value)[:80]
