"""Studies behind the published results: one module per question, not part of the wheel."""

import os

# As in mosrt, for a module that imports ONNX Runtime first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
