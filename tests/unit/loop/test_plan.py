from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders
from turnwise import errors
from turnwise.domain.job import BatchSpec, ScheduleSpec
from turnwise.loop.plan import Plan, learning_rate

counts = st.integers(min_value=1, max_value=20)


@given(num_rows=counts, batch=counts, epochs=counts, steps=counts, seed=st.integers())
def test_every_epoch_visits_every_row_once_and_steps_use_up_the_plan(
    num_rows: int, batch: int, epochs: int, steps: int, seed: int
) -> None:
    plan = Plan(seed=seed, num_rows=num_rows, batch=batch, max_epochs=epochs, max_steps=steps)
    places = list(plan.orders(()))
    assert places == list(range(plan.total))
    assert plan.total <= min(epochs * num_rows, steps * batch)
    assert (plan.num_steps - 1) * batch < plan.total <= plan.num_steps * batch
    for epoch in range(plan.total // num_rows):
        whole = range(epoch * num_rows, (epoch + 1) * num_rows)
        assert {plan.epoch(order) for order in whole} == {epoch}
        assert sorted(plan.row_index(order) for order in whole) == list(range(num_rows))


def test_the_seed_alone_decides_the_order_and_epochs_differ() -> None:
    def order(seed: int) -> list[int]:
        plan = Plan(seed=seed, num_rows=32, batch=4, max_epochs=2, max_steps=16)
        return [plan.row_index(place) for place in plan.orders(())]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:32] != order(1)[32:]


def test_places_that_are_done_are_not_planned_again() -> None:
    plan = Plan(seed=0, num_rows=6, batch=2, max_epochs=1, max_steps=9)
    assert list(plan.orders({0, 1, 3})) == [2, 4, 5]


def test_the_plan_follows_the_job_file_and_needs_rows() -> None:
    spec = builders.spec(
        seed=7,
        batch=BatchSpec(global_batch_size=3),
        schedule=ScheduleSpec(max_epochs=2, max_steps=4),
    )
    expected = Plan(seed=7, num_rows=5, batch=3, max_epochs=2, max_steps=4)
    assert Plan.of(spec, 5) == expected
    assert (expected.total, expected.num_steps) == (10, 4)
    with pytest.raises(errors.InvalidInput, match=r"dataset: '/data/train\.jsonl' has no rows"):
        Plan.of(spec, 0)


def test_the_learning_rate_stays_where_nothing_asks_it_to_move() -> None:
    flat = ScheduleSpec()
    assert [learning_rate(0.5, flat, step, 3) for step in range(3)] == [0.5, 0.5, 0.5]
    assert learning_rate(0.5, ScheduleSpec(final_learning_rate_fraction=0.1), 0, 1) == 0.5
