"""UTMOSv2 and models of its architecture: torch modules, export, and the parity check."""
