"""The commands `mosrt score`, `mosrt info` and `mosrt fit-mos`, and what all commands share."""
