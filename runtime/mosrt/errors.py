"""The exceptions that mosrt raises on purpose.

::

    MosrtError
    ├── AudioError (ValueError)       the recording cannot be scored; `flags` names the guards
    ├── BaselineError (ValueError)    scores do not compare with a monitor's baseline
    ├── BundleError (ValueError)      the bundle is missing, damaged, too new or inconsistent
    ├── PlanError (ValueError)        a crop plan does not fit the recording or the model
    ├── MeasureError (ValueError)     the model does not give the measure that is asked for
    ├── CalibrationError (ValueError) no map from uncertainty to MOS fits the rated clips
    ├── DomainError (KeyError)        the model does not know the data domain
    ├── ProviderError (RuntimeError)  the execution provider is not available on this machine
    ├── ClosedError (RuntimeError)    a scorer is used after it was closed
    ├── Overloaded (RuntimeError)     a server has more to score than it can; try again later
    └── OutputError (OSError)         a bundle or directory cannot be written

Each also derives from the builtin that a caller would catch without knowing mosrt. The packages
for export, quantisation and benchmarks add subclasses of MosrtError of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = [
    "AudioError",
    "BaselineError",
    "BundleError",
    "CalibrationError",
    "ClosedError",
    "DomainError",
    "MeasureError",
    "MosrtError",
    "OutputError",
    "Overloaded",
    "PlanError",
    "ProviderError",
    "missing_extra",
    "os_errors_as",
]


class MosrtError(Exception):
    """The base of every error that mosrt raises on purpose."""


class AudioError(MosrtError, ValueError):
    """A recording that guards refuse, or that cannot be read.

    Attributes:
        flags: Names of the guards, keys of `mosrt.audio.guards.FLAGS`.
    """

    def __init__(self, message: str, *, flags: tuple[str, ...]) -> None:
        super().__init__(message)
        self.flags = flags

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(AudioError, flags=self.flags), self.args


class BaselineError(MosrtError, ValueError):
    """A baseline that live scores do not compare with; the message names the file and the cure."""


class BundleError(MosrtError, ValueError):
    """A bundle that cannot be used; the message names the file and the cure."""


class PlanError(MosrtError, ValueError):
    """A crop plan that does not fit the recording or the model."""


class MeasureError(MosrtError, ValueError):
    """A measure that the model does not give."""


class CalibrationError(MosrtError, ValueError):
    """Rated clips to which no map from uncertainty to MOS can be fitted."""


class DomainError(MosrtError, KeyError):
    """A data domain the model does not know."""

    def __init__(self, domain: str, known: tuple[str, ...]) -> None:
        self.domain = domain
        self.known = known
        super().__init__(domain)

    def __reduce__(self) -> tuple[Any, ...]:
        return DomainError, (self.domain, self.known)

    def __str__(self) -> str:
        names = ", ".join(self.known) if self.known else "none: this model has no domains"
        return f"unknown domain {self.domain!r}; known: {names}"


class ProviderError(MosrtError, RuntimeError):
    """An execution provider that is not available on this machine, or does not run the variant."""


class ClosedError(MosrtError, RuntimeError):
    """A scorer, or what it consists of, that is used after it was closed."""


class Overloaded(MosrtError, RuntimeError):  # noqa: N818 - a state of the server, not a mistake
    """A request that is refused, because the queue is full or its deadline cannot be met.

    Attributes:
        retry_after_s: When it is worth trying again, in seconds from now, as an estimate.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Overloaded, retry_after_s=self.retry_after_s), self.args


class OutputError(MosrtError, OSError):
    """A bundle or another directory that cannot be written where it was asked for."""


def missing_extra(what: str, extra: str, module: str) -> str:
    """What to tell a user who lacks an extra.

    Args:
        what: What needs the extra, such as "provider 'openvino'".
        extra: Name of the extra.
        module: The module that is missing.
    """
    return f"{what} needs the extra: pip install 'mosrt[{extra}]' ({module} is missing)"


@contextmanager
def os_errors_as(error: type[Exception], what: str, cure: str) -> Iterator[None]:
    """Turns an OSError in the block into another error, but for errors of mosrt.

    Args:
        error: The type of the other error.
        what: What failed, the file first: "a.onnx: cannot be read".
        cure: What to do about it.
    """
    try:
        yield
    except MosrtError:
        raise
    except OSError as exc:
        raise error(f"{what} ({exc.strerror or exc}); {cure}") from exc
