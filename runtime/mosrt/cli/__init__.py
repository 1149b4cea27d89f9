"""The command line: `mosrt score`, `info` and `fit-mos`."""
