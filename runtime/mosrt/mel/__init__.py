"""Computes log-mel images with NumPy alone."""
