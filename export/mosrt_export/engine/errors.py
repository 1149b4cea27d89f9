"""What can go wrong when an engine is built."""

from __future__ import annotations

from mosrt.errors import MosrtError

__all__ = ["EngineError"]


class EngineError(MosrtError, RuntimeError):
    """An engine cannot be built; the message says why in TensorRT's words, and what helps."""
