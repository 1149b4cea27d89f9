"""Exports checkpoints as bundles, and bundles as TensorRT engines and Triton repositories."""

import os

# As in mosrt, for a module that imports ONNX Runtime first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
