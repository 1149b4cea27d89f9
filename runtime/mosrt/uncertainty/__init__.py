"""Uncertainty models: logits, measures per row, score."""
