"""Triton: model repositories for NVIDIA's inference server, which serves them without Python.

Nothing here needs torch; onnx only where the scores of several networks are averaged.
"""
