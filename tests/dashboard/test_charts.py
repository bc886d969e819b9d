from __future__ import annotations

import math

from turnwise.dashboard.charts import MAX_POINTS, MAX_ROWS, chart, thinned
from turnwise.dashboard.job.job_charts import sections
from turnwise.domain.curves import Curve


def test_a_chart_has_a_gap_where_a_curve_has_no_value():
    made = chart("r", "Reward", {"a": [(0, 1.0), (2, 3.0)], "b": [(1, 5.0)]}, href="/x?step={x}")
    assert made.data["x"] == [0, 1, 2]
    assert [series["values"] for series in made.data["series"]] == [
        [1.0, None, 3.0],
        [None, 5.0, None],
    ]
    assert [(row.x, row.values, row.href) for row in made.rows] == [
        (2, (3.0, None), "/x?step=2"),
        (1, (None, 5.0), "/x?step=1"),
        (0, (1.0, None), "/x?step=0"),
    ]
    assert made.caption == "step 2: a 3, b 5 (at 1)"


def test_what_is_no_number_is_drawn_as_nothing():
    made = chart("r", "Loss", {"loss": [(0, math.nan), (1, math.inf), (2, 0.5)]})
    assert made.data["series"][0]["values"] == [None, None, 0.5]


def test_a_chart_of_nothing_says_so():
    made = chart("r", "Loss", {"loss": []})
    assert (made.caption, made.rows, made.data["x"]) == ("nothing yet", (), [])


def test_a_long_curve_is_thinned_for_drawing_and_keeps_its_peaks():
    curve = [(step, 0.0) for step in range(100_000)]
    curve[31_415], curve[92_653] = (31_415, 7.0), (92_653, -7.0)
    made = chart("r", "Loss", {"loss": curve, "other": curve})
    assert len(made.data["x"]) <= MAX_POINTS + 2
    values = dict(zip(made.data["x"], made.data["series"][0]["values"], strict=True))
    assert (values[31_415], values[92_653]) == (7.0, -7.0)
    assert {0, 99_999} <= set(values)


def test_the_table_has_the_newest_rows_and_says_what_it_leaves_out():
    made = chart("r", "Loss", {"loss": [(step, float(step)) for step in range(250)]})
    assert [row.x for row in made.rows] == list(range(249, 249 - MAX_ROWS, -1))
    assert made.note == "the newest 50 of 250 steps"
    assert chart("r", "Loss", {"loss": [(0, 1.0)]}).note == ""


def test_thinning_passes_over_stretches_without_a_value():
    assert thinned([[None] * 10], 4) == [0, 9]
    assert thinned([], 4) == []


def test_a_band_names_its_curves_by_their_place():
    made = chart("r", "R", {"mean": [(0, 1.0)], "max": [(0, 2.0)]}, band=("max", "mean"))
    assert made.data["band"] == [1, 0]


def titles(curves: dict[str, Curve]) -> dict[str, list[str]]:
    return {
        section.title: [each.title for each in section.charts]
        for section in sections(curves, "/dashboard/jobs/walk/rollouts")
    }


def test_only_what_was_recorded_is_drawn():
    assert titles({}) == {}
    point: Curve = [(0, 0.5)]
    assert titles({"rollout/reward/mean": point, "training/loss": point}) == {
        "Reward": ["Training reward"],
        "Learning": ["Loss"],
    }


def test_a_validations_point_leads_to_its_own_rollouts():
    [reward] = sections({"val/reward/mean": [(4, 0.5)]}, "/jobs/walk/rollouts")
    [row] = reward.charts[0].rows
    assert row.href == "/jobs/walk/rollouts?step=4&purpose=validation"


def test_each_age_of_token_is_a_curve_of_its_own_in_order():
    curves = {f"mismatch/age_{age}/mean": [(0, age / 10)] for age in (10, 0, 2)}
    [section] = sections(curves, "")
    assert [series.label for series in section.charts[0].series] == ["age 0", "age 2", "age 10"]
