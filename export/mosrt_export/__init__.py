"""Exports checkpoints as bundles, and bundles as TensorRT engines and Triton repositories."""
