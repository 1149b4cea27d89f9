"""The commands `mosrt export` and `mosrt build`."""
