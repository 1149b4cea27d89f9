"""CUDA's libraries for ONNX Runtime, out of NVIDIA's Python packages."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path

import onnxruntime

__all__ = ["load_cuda_libraries"]

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
