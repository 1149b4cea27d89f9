"""TensorRT engines of ONNX graphs, built on the machine that runs them, without torch and onnx."""
