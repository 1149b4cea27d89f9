"""Predicts how people would rate the quality of speech, with ONNX models and without torch.

::

    import mosrt

    with mosrt.load() as scorer:
        print(scorer.score_file("speech.wav").mos)
"""

import os
import sys
import typing

# ONNX Runtime 1.29 and later report what they run to their maker. The variable must be set before
# the first import; a program that has imported ONNX Runtime already gets its switch turned.
if os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") == "1" and "onnxruntime" in sys.modules:
    sys.modules["onnxruntime"].disable_telemetry_events()

from .crops import CropGeometry, CropPlan, PlanRule
from .errors import (
    AudioError,
    BundleError,
    CalibrationError,
    ClosedError,
    DomainError,
    MeasureError,
    MosrtError,
    OutputError,
    PlanError,
    ProviderError,
)
from .loading import available_models, load
from .score import Score

if typing.TYPE_CHECKING:
    from .scorer import Scorer

__all__ = [
    "AudioError",
    "BundleError",
    "CalibrationError",
    "ClosedError",
    "CropGeometry",
    "CropPlan",
    "DomainError",
    "MeasureError",
    "MosrtError",
    "OutputError",
    "PlanError",
    "PlanRule",
    "ProviderError",
    "Score",
    "Scorer",
    "__version__",
    "available_models",
    "load",
]

__version__: str


def __getattr__(name: str) -> object:
    # Importing these would lengthen every start: few programs need them, and `load` imports the
    # scorer while the model loads.
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("mosrt")
    if name == "Scorer":
        from .scorer import Scorer  # noqa: PLC0415

        return Scorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
