"""Quantisation of bundles to FP16 and INT8, within a limit on how far scores may drift."""
