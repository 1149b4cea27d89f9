"""Models that score by their uncertainty: graphs, logits, measures, score."""
