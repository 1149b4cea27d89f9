"""Prepares ONNX Runtime for CUDA: loads its libraries and keeps inputs on the GPU."""

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
    """Loads CUDA libraries that are installed as Python packages, as torch installs them.

    The system's loader does not search Python packages, so ONNX Runtime would not find cuBLAS and
    cuDNN there. ONNX Runtime's own `preload_dlls` searches only the folder that it is installed in;
    packages may be in any folder of `sys.path`. The system's own libraries are found as usual. A
    library that is missing makes the provider fail to start, with a message.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:  # ONNX Runtime before 1.21
        return
    printed = io.StringIO()
    # The function prints, and standard output is for scores.
    with redirect_stdout(printed):
        for entry in sys.path:
            for folder in sorted(Path(entry, "nvidia").glob("*/lib")):
                preload(directory=str(folder))
        preload()
    if printed.getvalue():
        _LOG.info("%s", printed.getvalue().strip())


class BoundSession:
    """A session whose `run` uses I/O binding, so that inputs stay allocated on the device.

    ONNX Runtime's own `run` allocates every input on the device in every call. Here each running
    call takes an idle binding and copies into its inputs, which are allocated again only when
    shapes change. Results are new arrays on the host.

    Args:
        session: ONNX Runtime's session.
        device: ONNX Runtime's name of the inputs' device, such as "cuda".
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        # Bindings that no call uses, each with its inputs on the device.
        self._idle: queue.SimpleQueue[tuple[Any, dict[str, Any]]] = queue.SimpleQueue()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Runs the graph; returns the named outputs, in order."""
        try:
            binding, inputs = self._idle.get_nowait()
        except queue.Empty:
            binding, inputs = self._session.io_binding(), {}
        try:
            for name, array in feeds.items():
                if name not in inputs or tuple(inputs[name].shape()) != array.shape:
                    inputs[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                        array.shape, array.dtype.type, self._device, 0
                    )
                    binding.bind_ortvalue_input(name, inputs[name])
                inputs[name].update_inplace(np.ascontiguousarray(array))
            binding.clear_binding_outputs()
            for name in outputs:
                # ONNX Runtime copies the output to host memory.
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            found: list[Array] = binding.copy_outputs_to_cpu()
            return found
        finally:
            self._idle.put((binding, inputs))
