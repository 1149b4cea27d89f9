"""Backends: what runs a variant's graphs. Each module is one engine."""

from .base import Backend
from .ort import OrtBackend

__all__ = ["Backend", "OrtBackend"]
