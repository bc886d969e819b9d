"""The fixture of tests that drive a job's loop among fakes."""

from tests.unit.loop.world import world

__all__ = ["world"]
