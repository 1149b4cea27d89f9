"""Graph passes: each rewrites an ONNX graph or its weights."""
