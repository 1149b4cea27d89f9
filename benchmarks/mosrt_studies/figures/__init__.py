"""Render `benchmarks/RESULTS.md`, README's results and model-card claims from the raw results."""
