"""Statistics: error and correlation metrics, bootstrap, the VoiceMOS tables."""
