"""Studies of mosrt inside servers."""
