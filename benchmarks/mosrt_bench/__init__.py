"""Benchmarks: one file per question; raw runs are kept under benchmarks/results."""

import os

# As in mosrt, for a module that imports ONNX Runtime first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
