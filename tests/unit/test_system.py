"""Ids and the clock of production."""

import re
import time

from turnwise.system import SYSTEM_CLOCK, new_id


def test_ids_are_letters_after_the_prefix_and_never_the_same() -> None:
    made = {new_id("job") for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"job_[a-z]{26}", id) for id in made)


async def test_the_clock_tells_and_takes_real_time() -> None:
    before = time.time()
    await SYSTEM_CLOCK.sleep(0.001)
    assert before < SYSTEM_CLOCK.now() <= time.time()
