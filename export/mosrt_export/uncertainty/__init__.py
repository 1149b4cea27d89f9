"""Uncertainty models: exporters per family, and what they share."""
