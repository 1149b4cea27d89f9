"""NumPy-only log-mel front end."""
