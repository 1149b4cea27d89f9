"""Passes that rewrite an ONNX graph or its weights."""
