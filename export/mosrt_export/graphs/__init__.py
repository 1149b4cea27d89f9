"""ONNX graphs of torch modules: rewrites, front ends, and the files themselves."""
