"""Bundles: a manifest, its graphs and what they need."""
