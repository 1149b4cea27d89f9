"""Artefacts of synthesis: what vocoders, codecs, acoustic models and voice conversion do."""
