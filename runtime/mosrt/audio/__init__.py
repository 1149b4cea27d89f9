"""Decodes, downmixes, resamples and checks recordings."""
