"""Model repositories for NVIDIA's Triton Inference Server, which needs no Python to serve them."""
