"""Training clips: speech, treatments, and what is computed from them."""
