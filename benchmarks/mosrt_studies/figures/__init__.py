"""Render `benchmarks/RESULTS.md` and model-card figures from the raw results."""
