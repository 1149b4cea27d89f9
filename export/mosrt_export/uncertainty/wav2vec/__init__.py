"""wav2vec-style self-supervised models: checkpoints in, uncertainty bundles out."""
