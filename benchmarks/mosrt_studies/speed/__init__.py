"""Studies of latency and memory."""
