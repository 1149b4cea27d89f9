"""CUDA for ONNX Runtime: its libraries, and sessions whose inputs stay on the GPU."""

from __future__ import annotations

import io
import logging
import queue
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mosrt._arrays import Array

__all__ = ["BoundSession", "load_cuda_libraries"]

_LOG = logging.getLogger(__name__)


def load_cuda_libraries() -> None:
    """Loads what `pip install 'onnxruntime-gpu[cuda,cudnn]'` and torch bring along.

    The system's loader does not look into Python packages, so that ONNX Runtime would miss cuBLAS
    and cuDNN though they are installed. Its own function for that looks beside itself only, while
    packages may be spread over several folders. Libraries that the system has are found as ever,
    and those that are nowhere are for the provider to complain of.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:  # before version 1.21
        return
    said = io.StringIO()
    # It prints, and standard output is for scores.
    with redirect_stdout(said):
        for entry in sys.path:
            for folder in sorted(Path(entry, "nvidia").glob("*/lib")):
                preload(directory=str(folder))
        preload()
    if said.getvalue():
        _LOG.info("%s", said.getvalue().strip())


class BoundSession:
    """A session with the same `run` as ONNX Runtime's own, through I/O binding.

    A plain `run` allocates every input on the device anew. Here a call takes a binding whose
    inputs stay allocated as long as shapes stay, one per thread that runs at the time, and copies
    into them. Results are new arrays on the host: both they and the feeds belong to the caller.

    Args:
        session: The session.
        device: ONNX Runtime's name of the device that inputs live on, such as "cuda".
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._idle: queue.SimpleQueue[_Binding] = queue.SimpleQueue()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The named outputs, in order."""
        try:
            binding = self._idle.get_nowait()
        except queue.Empty:
            binding = _Binding(self._session, self._device)
        try:
            return binding.run(outputs, feeds)
        finally:
            self._idle.put(binding)

    def get_inputs(self) -> Any:
        """As the session's own."""
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        """As the session's own."""
        return self._session.get_outputs()


class _Binding:
    """Inputs on the device; for one thread at a time."""

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        for name, array in feeds.items():
            value = self._inputs.get(name)
            if value is None or tuple(value.shape()) != array.shape:
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    array.shape, array.dtype.type, self._device, 0
                )
                self._inputs[name] = value
                self._binding.bind_ortvalue_input(name, value)
            value.update_inplace(np.ascontiguousarray(array))
        self._binding.clear_binding_outputs()
        for name in outputs:
            # Where ONNX Runtime puts the copy that the caller gets.
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        found: list[Array] = self._binding.copy_outputs_to_cpu()
        return found
