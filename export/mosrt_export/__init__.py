"""Turns trained checkpoints into bundles: needs the extra `export` (torch, timm, transformers)."""
