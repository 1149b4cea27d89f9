"""Exports wav2vec 2.0 and HuBERT models of transformers as uncertainty bundles."""
