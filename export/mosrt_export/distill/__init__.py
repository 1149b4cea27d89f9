"""Distillation: published or exported models teach a small network."""
