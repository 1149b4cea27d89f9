"""UTMOSv2: checkpoints, modules, export, parity with the public code."""
