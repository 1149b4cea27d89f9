"""Benchmarks: one file per question; raw runs are kept under benchmarks/results."""
