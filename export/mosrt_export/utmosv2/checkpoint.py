"""Reads UTMOSv2 checkpoints, from a file or from Hugging Face, without running code in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from mosrt.host.files import sha256_of
from mosrt_export.errors import CheckpointError
from mosrt_export.limits import MAX_PARAMETERS

from .config import Kind

__all__ = [
    "FOLDS",
    "LICENCE",
    "PINNED_REVISION",
    "REPOSITORY",
    "TRAINING_DATA",
    "Checkpoint",
    "StateFile",
    "download_fold",
    "load_safely",
    "load_strictly",
    "read_checkpoint",
    "tensors_of",
]

REPOSITORY: Final = "sarulab-speech/UTMOSv2"
PINNED_REVISION: Final = "506474f2b33dc77c234d668cc419be1861899cad"
FOLDS: Final = {
    0: "c8149d988e4bbf3f347e6966b5d769de347a5f8c59ffca1dc4bd4bf5b8585e57",
    1: "b25a27b8ce23d722395f76a2fff7c259421950458ffb240066edd01d3f28cd1f",
    2: "c0beedbbed7ceef760adc556b925bf760639f281b20f75103b23fcdbdc5568f2",
    3: "ec4b56921617c762428195daef9449855798bfdd651c95933afa9a29212b8567",
    4: "f5176ac65f92653a14b3aea1878575a44ebe94ff7eaac4e9057029c19f52c720",
}
"""SHA-256 of each fold at the pinned revision."""
LICENCE: Final = "MIT"
TRAINING_DATA: Final = (
    "Listening tests with naturalness scores from 1 to 5: BVCC, a sarulab test made for the "
    "VoiceMOS Challenge 2024, Blizzard Challenge 2008-2011 and SOMOS"
)
_MAX_DOMAINS: Final = 1_000
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
_PREFIXES: Final = ("module.", "_orig_mod.")
# Keys of weight norm before torch 2.0, and since.
_WEIGHT_NORM: Final = {
    ".weight_g": ".parametrizations.weight.original0",
    ".weight_v": ".parametrizations.weight.original1",
}
_SHOWN_KEYS: Final = 6
_UNKNOWN_TYPE: Final = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """A checkpoint file and its state dict.

    Attributes:
        path: The file.
        state: Tensors by key, without wrapper prefixes, memory-mapped from the file.
    """

    path: Path
    state: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(StateFile):
    """A UTMOSv2 checkpoint and what its keys tell.

    Attributes:
        kind: "fusion", "spec" or "ssl".
        n_domains: Number of data domains, from the size of the head.
    """

    kind: Kind
    n_domains: int


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a file of `torch.save` with a state dict, or a dict that holds one; runs no code in it.

    Raises:
        CheckpointError: The file cannot be read, holds more than tensors, or is not a model of
            UTMOSv2's architecture.
    """
    state = _without_prefixes(tensors_of(load_safely(path), path))
    kind = _kind(state, path)
    return Checkpoint(path=path, state=state, kind=kind, n_domains=_n_domains(state, kind, path))


def load_strictly(
    model: nn.Module,
    checkpoint: StateFile,
    *,
    cure: str = "describe the model it belongs to with --config",
) -> None:
    """Loads a checkpoint into a module with exactly the same keys and shapes.

    Weight norm may be stored in either of its two layouts. The module may be on the device "meta";
    it then gets memory once its keys and shapes are known to be those of the checkpoint.

    Raises:
        CheckpointError: A key is missing or unexpected, or a shape differs; `cure` is its advice.
    """
    expected = model.state_dict()
    state = dict(checkpoint.state)
    for old, new in _WEIGHT_NORM.items():
        for key in [key for key in state if key.endswith(old) and key not in expected]:
            state[key.removesuffix(old) + new] = state.pop(key)
    found = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
    }
    problems = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in found.items() if keys]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: the keys are not those of this model; {'; '.join(problems)}; "
            f"{cure}"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device="cpu")
    model.load_state_dict(state)


def load_safely(
    path: Path,
    *,
    allowed: Sequence[type] = (),
    cure: str = "save `model.state_dict()` alone with torch.save",
) -> object:
    """Loads a file of `torch.save` that holds only tensors, plain values and `allowed` types.

    `cure` is what the error advises if it holds others.

    Raises:
        CheckpointError: The file cannot be read, or holds another type, which the message names.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    # Files from before torch 1.6 are not zip files and cannot be memory-mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore", UserWarning)  # about pickle versions
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as exc:
        wanted = _UNKNOWN_TYPE.search(str(exc))
        reason = f"it needs {wanted[1]}" if wanted else str(exc).split("\n")[0]
        raise CheckpointError(
            f"{path}: not a plain state dict; reading it could run code that is in it; {cure} "
            f"({reason})"
        ) from exc
    except Exception as exc:  # a damaged pickle ends torch in many ways
        reason = str(exc).split("\n")[0]
        raise CheckpointError(
            f"{path}: not a checkpoint that torch can read ({reason}); the file may be truncated: "
            "copy or download it again"
        ) from exc


def tensors_of(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in the value that torch.load returned."""
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{path}: holds {type(loaded).__name__}, not a state dict")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r} is {type(value).__name__}, not a tensor; "
                "save `model.state_dict()` alone"
            )
    # A view of a few numbers can claim any shape.
    if sum(value.numel() for value in loaded.values()) > MAX_PARAMETERS:
        raise CheckpointError(f"{path}: has over {MAX_PARAMETERS:,} parameters, as in no model")
    return cast("dict[str, torch.Tensor]", dict(loaded))


def _without_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Removes the prefixes that DataParallel and torch.compile add to every key."""
    for prefix in _PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _kind(state: Mapping[str, Any], path: Path) -> Kind:
    heads = {key.split(".", 1)[0] for key in state}
    if {"ssl", "spec_long", "fc"} <= heads:
        return "fusion"
    if {"backbones", "attn", "fc"} <= heads:
        return "spec"
    if {"encoder", "attn", "fc"} <= heads:
        return "ssl"
    raise CheckpointError(
        f"{path}: not a model of UTMOSv2's architecture: keys start with "
        f"{_some(sorted(heads))}, not with ssl, spec_long and fc (fusion), "
        "backbones, attn and fc (spec) or encoder, attn and fc (ssl)"
    )


def _n_domains(state: Mapping[str, torch.Tensor], kind: Kind, path: Path) -> int:
    """Counts domains: the columns of the head after the features are for one-hot domains.

    In a fusion model, each branch also has columns for a domain, whose inputs are always zero.
    """
    attention = {
        "fusion": ("ssl.attn.0.out_proj.weight", "spec_long.attn.out_proj.weight"),
        "spec": ("attn.out_proj.weight",),
        "ssl": ("attn.0.out_proj.weight",),
    }[kind]
    for key in (*attention, "fc.weight"):
        if key not in state or state[key].ndim != 2:
            raise CheckpointError(f"{path}: a {kind} model needs the matrix {key!r}")
    rows, columns = state["fc.weight"].shape
    features = sum(2 * state[key].shape[0] for key in attention)
    sets = 3 if kind == "fusion" else 1
    n_domains, rest = divmod(columns - features, sets)
    if rows != 1 or rest or not 0 < n_domains <= _MAX_DOMAINS:
        raise CheckpointError(
            f"{path}: the head 'fc.weight' is {rows} x {columns}; a {kind} model with {features} "
            f"features has 1 row and {sets} column(s) per domain after them"
        )
    return int(n_domains)


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN_KEYS])
    return shown if len(keys) <= _SHOWN_KEYS else f"{shown}, and {len(keys) - _SHOWN_KEYS} more"


def download_fold(fold: int, revision: str = PINNED_REVISION) -> Path:
    """Downloads a published fold (819 MB) unless it is in Hugging Face's cache.

    Args:
        fold: 0 to 4.
        revision: Commit, tag or branch of the repository. The SHA-256 is checked for the pinned
            revision only.

    Returns:
        The checkpoint's path in the cache.

    Raises:
        CheckpointError: The file is neither cached nor reachable, or its SHA-256 is wrong.
    """
    import huggingface_hub  # noqa: PLC0415 - not needed for a checkpoint at hand
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    name = f"fold{fold}_s42_best_model.pth"
    try:
        path = Path(huggingface_hub.hf_hub_download(REPOSITORY, name, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as exc:
        reason = str(exc).strip().split("\n")[0]
        raise CheckpointError(
            f"cannot get {name} from https://huggingface.co/{REPOSITORY} at revision {revision}, "
            f"and it is not in the cache ({type(exc).__name__}: {reason}); download it on a "
            f"machine with a network and pass the file to `mosrt export utmosv2`"
        ) from exc
    if revision == PINNED_REVISION and (found := sha256_of(path)) != FOLDS[fold]:
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, not {FOLDS[fold]} as published; the download is damaged: "
            "delete the file and try again"
        )
    return path
