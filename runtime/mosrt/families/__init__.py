"""Model families: what goes into a model, and how its outputs become a score."""
