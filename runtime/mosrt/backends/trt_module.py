"""Finds TensorRT's Python module: TensorRT itself or TensorRT-RTX.

Both have the same interface under different module names. TensorRT is preferred because it runs on
every NVIDIA GPU; TensorRT-RTX supports only the GPUs that it lists.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from mosrt.errors import ProviderError

__all__ = ["MODULES", "TensorRt", "dtype_name", "find_tensorrt"]

MODULES: Final = ("tensorrt", "tensorrt_rtx")
_MIN_VERSIONS: Final = {"tensorrt": (10, 3), "tensorrt_rtx": (1, 0)}
_INSTALL: Final = (
    "on a Jetson, JetPack 6.2 or later has it (apt install nvidia-jetpack; a virtual environment "
    "needs --system-site-packages); elsewhere use `pip install tensorrt`, or `pip install "
    "tensorrt-rtx` for GeForce and RTX cards"
)


@dataclass(frozen=True, slots=True)
class TensorRt:
    """The TensorRT module of this machine.

    Attributes:
        module: The module itself.
        name: The module's name, one of `MODULES`.
        version: The module's version, such as "10.3.0".
        logger: The logger of this process; TensorRT keeps the first one that it is given.
    """

    module: Any
    name: str
    version: str
    logger: Any

    def __str__(self) -> str:
        title = "TensorRT" if self.name == "tensorrt" else "TensorRT-RTX"
        return f"{title} {self.version}"

    @contextmanager
    def log(self) -> Iterator[list[str]]:
        """Collects warnings and errors that TensorRT logs during the block, from any thread."""
        lines: list[str] = []
        with self.logger.guard:
            self.logger.listeners[id(lines)] = lines
        try:
            yield lines
        finally:
            with self.logger.guard:
                del self.logger.listeners[id(lines)]


def find_tensorrt() -> TensorRt:
    """Imports the TensorRT module of this machine.

    Raises:
        ProviderError: TensorRT is missing, does not load or is too old; the message says how to
            install it.
    """
    reasons = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as exc:  # a library that the module needs may be missing
            reasons.append(f"{name}: {exc}")
            continue
        version = str(module.__version__)
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < _MIN_VERSIONS[name]:
            oldest = ".".join(map(str, _MIN_VERSIONS[name]))
            reasons.append(f"{name}: version {version} is older than {oldest}")
            continue
        return TensorRt(module, name, version, _logger(module))
    raise ProviderError(f"TensorRT is missing; {_INSTALL} ({'; '.join(reasons)})")


def dtype_name(dtype: Any) -> str:
    """NumPy's name of a TensorRT type; of a type that NumPy does not have, TensorRT's own name."""
    return {"FLOAT": "float32", "HALF": "float16"}.get(dtype.name, str(dtype.name).lower())


@cache
def _logger(module: Any) -> Any:
    """The logger for `module`, created once per process."""
    severity = module.ILogger.Severity
    kept = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

    class Logger(module.ILogger):  # type: ignore[misc]  # known only at run time
        """Passes lines to its listeners and prints nothing."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.guard = threading.Lock()
            self.listeners: dict[int, list[str]] = {}

        def log(self, level: Any, message: str) -> None:
            if level in kept:
                with self.guard:
                    for lines in self.listeners.values():
                        lines.append(message.strip())

    return Logger()
