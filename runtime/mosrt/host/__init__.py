"""What the machine provides: CPU features, threads, a cache, atomic files."""
