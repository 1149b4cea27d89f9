"""Published quality models to compare with."""
