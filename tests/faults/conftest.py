"""Fixtures that the runtime's own tests have."""

from tests.runtime.conftest import backend, machine

__all__ = ["backend", "machine"]
