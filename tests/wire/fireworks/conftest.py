from tests.unit.control.conftest import store, world
from tests.wire.fireworks.kit import api, place

__all__ = ["api", "place", "store", "world"]
