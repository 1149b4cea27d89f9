"""Recipes of the embedded models: generate speech, train, export."""
