"""Scores recordings inside servers: a bounded queue, and workers that share the cores."""
