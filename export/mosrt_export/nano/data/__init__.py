"""Training data of the embedded models."""
