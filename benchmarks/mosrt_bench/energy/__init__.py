"""Energy counters: RAPL, NVML and the power rails of a Jetson."""
