"""Bound sessions: ONNX Runtime on a GPU, its inputs in memory of the device that is used again."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

__all__ = ["BoundSession"]

Array = npt.NDArray[Any]


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
