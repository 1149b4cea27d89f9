"""wav2vec 2.0 and HuBERT of transformers: models in, uncertainty bundles out."""
