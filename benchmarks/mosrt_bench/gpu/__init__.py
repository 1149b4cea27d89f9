"""The GPU benchmark: every way to run a fusion model, against eager torch, in one run."""
