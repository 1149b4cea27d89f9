"""Uncertainty models: bundles of several graphs, and their cards."""
