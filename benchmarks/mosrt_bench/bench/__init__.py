"""What `mosrt bench` measures: parity, speed and how it plans and runs both."""
