"""Live monitoring: samples traffic, exports metrics, and tests for drops of quality."""
