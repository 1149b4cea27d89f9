"""Engines: ONNX graphs turned into TensorRT engines, on the machine that runs them.

Nothing here needs torch or onnx: TensorRT parses the graphs itself.
"""
