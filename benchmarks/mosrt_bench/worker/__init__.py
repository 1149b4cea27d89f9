"""Load a configuration, in this process or in one of its own, and time what it does."""
