from __future__ import annotations

import numpy as np

from turnwise.sampling.random import as_seed, uniforms


def draws(seed: int, count: int) -> np.ndarray:
    return uniforms(np.full(count, as_seed(seed)), np.arange(count, dtype=np.uint64))


def test_a_draw_depends_on_its_seed_and_number_alone() -> None:
    seeds = np.array([3, 1, 3], np.uint64)
    counts = np.array([5, 5, 9], np.uint64)
    assert uniforms(seeds, counts).tolist() == [draws(3, 6)[5], draws(1, 6)[5], draws(3, 10)[9]]


def test_draws_fill_the_unit_interval_evenly() -> None:
    histogram, _ = np.histogram(draws(1, 100_000), bins=50, range=(0, 1))
    assert np.abs(histogram / 2000 - 1).max() < 0.1


def test_neighbouring_seeds_are_unrelated() -> None:
    first = np.array([draws(seed, 1)[0] for seed in range(20_000)])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(draws(7, 20_000), draws(8, 20_000))[0, 1]) < 0.03


def test_seeds_a_step_apart_do_not_repeat_each_others_draws() -> None:
    step = 0x9E3779B97F4A7C15
    assert set(draws(1, 100).tolist()).isdisjoint(draws(1 + step, 100).tolist())


def test_any_integer_is_a_seed() -> None:
    assert as_seed(-1) == np.uint64(2**64 - 1)
    assert as_seed(2**64 + 5) == np.uint64(5)
