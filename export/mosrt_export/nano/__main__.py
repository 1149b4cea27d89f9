"""`python -m mosrt_export.nano`: what `mosrt nano` does."""

from .cli import nano

nano()
