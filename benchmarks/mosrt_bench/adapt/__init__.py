"""A data domain for a listening test: fits a head to rated clips and cross-validates it."""
