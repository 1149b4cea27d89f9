"""Refuses settings that no model has, before memory is taken for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from .errors import CheckpointError

__all__ = ["MAX_PARAMETERS", "build_refusals", "check_parameters", "check_settings"]

MAX_PARAMETERS: Final = 3_000_000_000
"""Parameters of the largest model that is read; the largest wav2vec 2.0 has two billion."""
_MAX_VALUE: Final = 1_000_000
_MAX_LENGTH: Final = 64
_MAXIMA: Final = {
    "conv_kernel": 1_000,
    "conv_stride": 1_000,
    "mask_time_length": 1_000,
    "num_hidden_layers": 256,
    "num_negatives": 1_000,
}
_POSITIVE: Final = (
    "_dim", "_eps", "_heads", "_kernel", "_layers", "_size", "_stride", "_temperature"
)  # fmt: skip


def check_settings(settings: Mapping[str, Any]) -> None:
    """Checks the numbers, and lists of them, in the configuration of a transformers model.

    Raises:
        CheckpointError: A number is negative, not finite or absurdly large, or zero where the name
            says that it is a size, a scale or a number of layers.
    """
    for name, value in settings.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        numbers = [each for each in values if isinstance(each, (int, float))]
        # Written so that nan is refused, too.
        fits = all(0 <= number <= _MAXIMA.get(name, _MAX_VALUE) for number in numbers)
        zero = name.endswith(_POSITIVE) and 0 in numbers
        if zero or not fits or len(values) > _MAX_LENGTH:
            raise CheckpointError(f"{name} is {str(value)[:80]}, as in no model")


def check_parameters(build: Callable[[], nn.Module]) -> None:
    """Builds a module without memory for its parameters, and counts them.

    Raises:
        CheckpointError: There are more than `MAX_PARAMETERS`.
    """
    with torch.device("meta"):
        n_parameters = sum(parameter.numel() for parameter in build().parameters())
    if n_parameters > MAX_PARAMETERS:
        raise CheckpointError(
            f"it has {n_parameters:,} parameters; at most {MAX_PARAMETERS:,} are supported"
        )


@contextmanager
def build_refusals(where: str, error: Callable[[str], Exception]) -> Iterator[None]:
    """Turns whatever transformers and timm raise for wrong settings into one error at `where`."""
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - slow to import

    builtins = (AssertionError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError)
    try:
        yield
    except (*builtins, ValueError, StrictDataclassError) as exc:
        reason = " ".join(str(exc).split("\n")[:2]).strip()
        raise error(f"{where} ({reason})") from exc
