"""Reads and writes bundles: a manifest, its graphs and their weights."""
