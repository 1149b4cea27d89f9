"""The commands `mosrt bench` and `mosrt gate`."""
