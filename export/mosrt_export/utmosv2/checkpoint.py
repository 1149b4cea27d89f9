"""Checkpoint: a published or home-made state dict, read safely and brought to one set of keys."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from torch import nn

from mosrt.errors import MosrtError

from .config import Kind

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "load_safely",
    "load_strictly",
    "read_checkpoint",
    "tensors_of",
]

_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
_PREFIXES: Final = ("module.", "_orig_mod.")
_WEIGHT_NORM: Final = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
)
_SHOWN_KEYS: Final = 6
_UNKNOWN_TYPE: Final = re.compile(r"GLOBAL ([\w.]+)")


class CheckpointError(MosrtError, ValueError):
    """A checkpoint that cannot be exported; the message names the file and the cure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state dict and what can be read off it.

    Attributes:
        path: The file.
        state: Tensors by key, without wrapper prefixes; mapped from the file, not copied.
        kind: "fusion", "spec" or "ssl".
        n_domains: Data domains, from the size of the head.
    """

    path: Path
    state: Mapping[str, torch.Tensor]
    kind: Kind
    n_domains: int


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint without running anything that is in it.

    Args:
        path: A file written by `torch.save`: a state dict, or a dict that holds one.

    Raises:
        CheckpointError: The file cannot be read, holds more than tensors, or is no UTMOSv2-like
            model.
    """
    state = _without_prefixes(tensors_of(load_safely(path), path))
    kind = _kind(state, path)
    return Checkpoint(path=path, state=state, kind=kind, n_domains=_n_domains(state, kind, path))


class StateFile(Protocol):
    """A file with a state dict in it."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def state(self) -> Mapping[str, torch.Tensor]:
        """Tensors by key."""


def load_strictly(
    model: nn.Module,
    checkpoint: StateFile,
    *,
    cure: str = "describe the model it belongs to with --config",
) -> None:
    """Copies a checkpoint into a module with exactly the same keys and shapes.

    Weight norm may be stored under either of its two layouts.

    Raises:
        CheckpointError: A key is missing or unexpected, or a shape differs.
    """
    expected = model.state_dict()
    state = {_as_in(expected, key): value for key, value in checkpoint.state.items()}
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    differing = [
        f"{key} {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", differing),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: the keys are not those of this model; {'; '.join(problems)}; "
            f"{cure}"
        )
    model.load_state_dict(state)


def load_safely(
    path: Path,
    *,
    allowed: Sequence[type] = (),
    cure: str = "save `model.state_dict()` alone with torch.save",
) -> object:
    """What `torch.save` wrote, if it consists of tensors, plain values and `allowed` types.

    Raises:
        CheckpointError: The file cannot be read, or wants another type, which is named.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    # files from before torch 1.6 are no zip and cannot be mapped
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore", UserWarning)  # about pickle versions
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as exc:
        wanted = _UNKNOWN_TYPE.search(str(exc))
        reason = f"it wants {wanted[1]}" if wanted else str(exc).split("\n")[0]
        raise CheckpointError(
            f"{path}: not a plain state dict; reading on could run code that is in the file, so "
            f"mosrt refuses; {cure} ({reason})"
        ) from exc
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as exc:
        reason = str(exc).split("\n")[0]
        raise CheckpointError(
            f"{path}: not a checkpoint that torch can read ({reason}); the file may be truncated: "
            "copy or download it again"
        ) from exc


def tensors_of(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict in what torch.load returned."""
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
    return cast("dict[str, torch.Tensor]", dict(loaded))


def _without_prefixes(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drops what DataParallel and torch.compile put in front of every key."""
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
        f"{path}: no UTMOSv2-like model: keys start with {_some(sorted(heads))}, not with ssl, "
        "spec_long and fc (fusion), backbones, attn and fc (spec) or encoder, attn and fc (ssl)"
    )


def _n_domains(state: Mapping[str, torch.Tensor], kind: Kind, path: Path) -> int:
    """The columns of the head beyond the features are one-hot domains.

    Fusion's branches each bring columns for a domain of their own, which are fed zeros.
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
    if rows != 1 or columns <= features or (columns - features) % sets:
        raise CheckpointError(
            f"{path}: the head 'fc.weight' is {rows} x {columns}; a {kind} model with {features} "
            f"features has 1 row and {sets} column(s) per domain beyond them"
        )
    return int(columns - features) // sets


def _as_in(expected: Mapping[str, Any], key: str) -> str:
    """`key` under the weight-norm layout that `expected` uses."""
    for old, new in _WEIGHT_NORM:
        for layout, other in ((old, new), (new, old)):
            if key.endswith(layout):
                renamed = key.removesuffix(layout) + other
                if key not in expected and renamed in expected:
                    return renamed
    return key


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN_KEYS])
    return shown if len(keys) <= _SHOWN_KEYS else f"{shown}, and {len(keys) - _SHOWN_KEYS} more"
