"""MOS models: views, front end, networks, score."""
