"""Errors of exports, engine builds and model repositories.

MosrtError
├── CheckpointError (ValueError)   a checkpoint cannot be read or exported
├── ConfigError (ValueError)       a configuration does not describe a model
├── ParityError (RuntimeError)     a graph and its torch module disagree
├── EngineError (RuntimeError)     TensorRT cannot build an engine
└── TritonError (ValueError)       a bundle cannot be served on Triton as requested
"""

from __future__ import annotations

from mosrt.errors import MosrtError

__all__ = ["CheckpointError", "ConfigError", "EngineError", "ParityError", "TritonError"]


class CheckpointError(MosrtError, ValueError):
    """A checkpoint cannot be read or exported; the message names the file and the cure."""


class ConfigError(MosrtError, ValueError):
    """A configuration does not describe a model; the message names the key and the cure."""


class ParityError(MosrtError, RuntimeError):
    """A graph and its torch module disagree; nothing was written."""


class EngineError(MosrtError, RuntimeError):
    """An engine cannot be built; the message quotes TensorRT and says what helps."""


class TritonError(MosrtError, ValueError):
    """A bundle cannot be served as requested; the message says why and what helps."""
