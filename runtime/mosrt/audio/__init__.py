"""Audio input: decode, downmix, resample, and check recordings."""
