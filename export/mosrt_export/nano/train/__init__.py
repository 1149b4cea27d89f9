"""Networks, training and export of the embedded models."""
