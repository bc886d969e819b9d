import pytest

from tests.builders import SetClock
from turnwise import errors
from turnwise.dashboard.recent import KEPT, KEPT_S, Recent


class Counter:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


async def test_a_value_is_made_again_only_when_it_is_old():
    clock, make = SetClock(), Counter()
    recent: Recent[int] = Recent(clock)

    first = [await recent.get("a", make), await recent.get("a", make)]
    clock.at += KEPT_S
    later = await recent.get("a", make)

    assert (first, later) == ([1, 1], 2)


async def test_the_oldest_value_makes_room():
    make = Counter()
    recent: Recent[int] = Recent(SetClock())
    for key in range(KEPT + 1):
        await recent.get(key, make)

    await recent.get(KEPT, make)
    assert make.count == KEPT + 1
    await recent.get(0, make)
    assert make.count == KEPT + 2


async def test_what_goes_wrong_is_not_remembered():
    async def breaks() -> int:
        raise errors.NotFound("job", "walk")

    recent: Recent[int] = Recent(SetClock())
    with pytest.raises(errors.NotFound):
        await recent.get("a", breaks)

    assert await recent.get("a", Counter()) == 1
