"""Studies of how well scores follow listeners."""
