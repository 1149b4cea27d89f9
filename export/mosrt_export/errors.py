"""What can go wrong when an engine is built."""

from __future__ import annotations

from typing import Final

from mosrt.errors import MosrtError

__all__ = ["UNSERVED", "EngineError"]

UNSERVED: Final = (
    "this TensorRT does not serve this GPU: TensorRT-RTX is for GeForce and RTX cards, other GPUs "
    "need the full TensorRT, old ones an old version of it"
)


class EngineError(MosrtError, RuntimeError):
    """An engine cannot be built; the message says why in TensorRT's words, and what helps."""
