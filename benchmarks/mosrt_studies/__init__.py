"""Studies behind the published results: one module per question, not part of the wheel."""
