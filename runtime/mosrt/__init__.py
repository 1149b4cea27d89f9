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

if typing.TYPE_CHECKING:
    from .crops import CropGeometry, CropPlan, PlanRule
    from .errors import (
        AudioError,
        BaselineError,
        BundleError,
        CalibrationError,
        ClosedError,
        DomainError,
        MeasureError,
        MosrtError,
        OutputError,
        Overloaded,
        PlanError,
        ProviderError,
    )
    from .loading import available_models, load
    from .score import Score
    from .scorer import Scorer
    from .serving.async_scorer import AsyncScorer
    from .serving.best import Best
    from .serving.monitoring.counts import MonitorStats
    from .serving.monitoring.drift import Drift, MonitoredClip
    from .serving.monitoring.histogram import MosHistogram
    from .serving.monitoring.monitor import Monitor
    from .serving.scorer_pool import ScorerPool
    from .serving.stats import ServingStats

__all__ = [
    "AsyncScorer",
    "AudioError",
    "BaselineError",
    "Best",
    "BundleError",
    "CalibrationError",
    "ClosedError",
    "CropGeometry",
    "CropPlan",
    "DomainError",
    "Drift",
    "MeasureError",
    "Monitor",
    "MonitorStats",
    "MonitoredClip",
    "MosHistogram",
    "MosrtError",
    "OutputError",
    "Overloaded",
    "PlanError",
    "PlanRule",
    "ProviderError",
    "Score",
    "Scorer",
    "ScorerPool",
    "ServingStats",
    "__version__",
    "available_models",
    "load",
]

__version__: str

_MODULES: typing.Final = {
    "crops": ("CropGeometry", "CropPlan", "PlanRule"),
    "loading": ("available_models", "load"),
    "score": ("Score",),
    "scorer": ("Scorer",),
    "serving.async_scorer": ("AsyncScorer",),
    "serving.best": ("Best",),
    "serving.monitoring.counts": ("MonitorStats",),
    "serving.monitoring.drift": ("Drift", "MonitoredClip"),
    "serving.monitoring.histogram": ("MosHistogram",),
    "serving.monitoring.monitor": ("Monitor",),
    "serving.scorer_pool": ("ScorerPool",),
    "serving.stats": ("ServingStats",),
}


def __getattr__(name: str) -> object:
    # What is needed is imported when it is: a command that is interrupted meanwhile can say so.
    import importlib  # noqa: PLC0415

    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("mosrt")
    if name in __all__:
        home = next((module for module, names in _MODULES.items() if name in names), "errors")
        value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value
    if name == "errors" or name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
