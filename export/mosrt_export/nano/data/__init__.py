"""Generation of the embedded models' training data."""
