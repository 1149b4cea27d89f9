"""What the machine offers: CPU features, threads, cache, atomic files."""
