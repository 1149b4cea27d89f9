"""What can go wrong when a model repository is made."""

from __future__ import annotations

from mosrt.errors import MosrtError

__all__ = ["TritonError"]


class TritonError(MosrtError, ValueError):
    """A bundle cannot be served as asked for; the message says why, and what helps."""
