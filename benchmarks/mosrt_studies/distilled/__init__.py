"""Training of `utmosv2-distilled`: UTMOSv2's size, the scores of `nano` as targets."""
