"""Quantisation of bundles to FP16 and INT8, within a limit on how far scores may drift."""

import os

# As in mosrt, for a module that imports ONNX Runtime first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
