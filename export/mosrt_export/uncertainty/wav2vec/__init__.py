"""Exports wav2vec v1 and vq-wav2vec checkpoints as uncertainty bundles."""
