"""Calibration: FP16 and INT8 variants of a bundle, their drift measured and in a budget."""
