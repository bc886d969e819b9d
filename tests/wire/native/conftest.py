from tests.unit.control.conftest import store, world

__all__ = ["store", "world"]
