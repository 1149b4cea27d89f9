"""Studies behind published figures, one file per question; not in the wheel."""
