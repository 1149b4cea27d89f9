"""Judge speech quality anywhere: deterministic scores from ONNX models, without torch.

import mosrt

with mosrt.load("utmosv2") as scorer:
    print(scorer.score_file("speech.wav").mos)
"""

from importlib.metadata import version as _version

from .crops import CropGeometry, CropPlan
from .errors import (
    AudioError,
    BundleError,
    CalibrationError,
    DomainError,
    MeasureError,
    MosrtError,
    PlanError,
    ProviderError,
)
from .loading import load
from .plan_rule import PlanRule
from .score import Score
from .scorer import Scorer

__all__ = [
    "AudioError",
    "BundleError",
    "CalibrationError",
    "CropGeometry",
    "CropPlan",
    "DomainError",
    "MeasureError",
    "MosrtError",
    "PlanError",
    "PlanRule",
    "ProviderError",
    "Score",
    "Scorer",
    "__version__",
    "load",
]

__version__ = _version("mosrt")
