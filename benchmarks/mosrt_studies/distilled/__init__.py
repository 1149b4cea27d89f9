"""Trained weights of UTMOSv2's full size, with a target that is known: what `nano` says."""
