"""A job's overview, its logs and its export."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import path_of
from tests.browser.world import BROKEN, EVALUATED, RUNNING, STEPS, TRAINED, World


def test_charts_of_a_running_job_go_on_and_keep_what_is_unfolded(page: Page) -> None:
    page.goto(f"/dashboard/jobs/{RUNNING}")
    figure = page.get_by_role("figure").filter(has_text="Reward").first
    expect(figure.get_by_role("img")).to_be_visible()
    figure.get_by_text("Numbers").click()
    rows = figure.get_by_role("row")
    before = rows.count()
    said = figure.get_by_role("img").get_attribute("aria-label")
    expect(rows.nth(before)).to_be_visible()
    expect(figure.get_by_role("img")).not_to_have_accessible_name(said or "")


def test_smoothing_and_scale_redraw_the_charts_and_are_in_the_address(page: Page) -> None:
    page.goto(f"/dashboard/jobs/{TRAINED}")
    plot = page.get_by_role("figure").first.get_by_role("img")
    expect(plot).to_be_visible()
    before = plot.screenshot()
    page.get_by_label("Smoothing").select_option("0.9")
    expect(page).to_have_url(re.compile("smooth=0.9"))
    assert plot.screenshot() != before
    page.get_by_label("Log scale").check()
    expect(page).to_have_url(re.compile("scale=log"))
    page.reload()
    expect(page.get_by_label("Smoothing")).to_have_value("0.9")
    expect(page.get_by_label("Log scale")).to_be_checked()


def test_a_click_on_a_chart_leads_to_that_steps_rollouts(page: Page) -> None:
    page.goto(f"/dashboard/jobs/{TRAINED}")
    figure = page.get_by_role("figure").first
    plot = figure.get_by_role("img")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    right = box["x"] + box["width"] - 40
    page.mouse.move(right - 60, box["y"] + 60)
    page.mouse.move(right, box["y"] + 60, steps=4)
    expect(plot).to_contain_text(f"step{STEPS - 1}")  # the cursor is there
    page.mouse.down()
    page.mouse.up()
    expect(page).to_have_url(re.compile(rf"/rollouts\?.*trained={STEPS - 1}"))
    expect(page.get_by_role("region", name="Rollouts")).to_be_visible()


def test_the_timeline_leads_to_a_steps_rollouts_to_ten_at_random_and_to_its_logs(
    page: Page,
) -> None:
    page.goto(f"/dashboard/jobs/{TRAINED}")
    page.get_by_role("link", name="Rollouts of step 1", exact=True).click()
    expect(page.get_by_role("link", name="Remove the filter: trained at step 1")).to_be_visible()
    page.go_back()
    page.get_by_role("link", name="Ten random rollouts of step 1", exact=True).click()
    expect(page.get_by_role("region", name="Rollouts").get_by_role("rowheader")).to_have_count(10)
    first = _ids(page)
    page.get_by_role("link", name="Another ten").click()
    expect(page).to_have_url(re.compile("seed="))
    assert _ids(page) != first
    page.goto(f"/dashboard/jobs/{TRAINED}")
    page.get_by_role("link", name="Logs of step 1", exact=True).click()
    expect(page.get_by_label("Step")).to_have_value("1")
    expect(page.get_by_role("list", name="Log").get_by_role("listitem").first).to_be_visible()


def _ids(page: Page) -> list[str | None]:
    cells = page.get_by_role("region", name="Rollouts").get_by_role("rowheader").all()
    return [cell.get_by_role("link").first.get_attribute("href") for cell in cells]


def test_an_evaluation_shows_base_and_tuned_on_the_same_rows(page: Page, world: World) -> None:
    page.goto(f"/dashboard/jobs/{EVALUATED}")
    tuned = str(world.client.job(TRAINED)["output"])
    results = page.get_by_role("region", name="Results").get_by_role("table")
    expect(results.get_by_role("columnheader", name="base")).to_be_visible()
    expect(results.get_by_role("columnheader", name=tuned)).to_be_visible()
    expect(page.get_by_text(re.compile(r"6 paired rows")).first).to_be_visible()


def test_a_job_that_failed_says_why(page: Page) -> None:
    page.goto(f"/dashboard/jobs/{BROKEN}")
    expect(page.get_by_role("alert")).to_contain_text("lost.jsonl")
    expect(page.get_by_role("button", name=f"Resume {BROKEN}")).to_be_visible()


def test_notes_are_written_and_read(page: Page) -> None:
    page.goto(f"/dashboard/jobs/{TRAINED}")
    page.get_by_text(re.compile("^(Edit notes|Add a description)")).click()
    page.get_by_label("Hypothesis").fill("vowels are learned first")
    page.get_by_role("button", name="Save notes").click()
    expect(page.get_by_role("definition").filter(has_text="vowels are learned")).to_be_visible()


def test_a_log_is_followed_filtered_and_leads_to_a_rollout_and_back(page: Page) -> None:
    page.goto(f"/dashboard/jobs/{RUNNING}/logs")
    lines = page.get_by_role("list", name="Log").get_by_role("listitem")
    expect(page.get_by_role("checkbox", name="Following")).to_be_checked()
    expect(lines.nth(lines.count())).to_be_visible()
    page.goto(f"/dashboard/jobs/{TRAINED}/logs")
    page.get_by_label("Level").select_option("warning")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("level=warning"))
    assert not lines.filter(has_text="INFO").count()
    assert lines.filter(has_text="WARNING").count()
    filtered = path_of(page)
    page.goto(f"/dashboard/jobs/{TRAINED}/logs")
    link = lines.get_by_role("link", name=re.compile("^rollout_")).first
    name = link.inner_text()
    link.click()
    expect(page.get_by_role("term").filter(has_text="Rollout")).to_be_visible()
    page.get_by_role("link", name="Log lines").click()
    expect(page.get_by_label("Rollout")).to_have_value(name)
    expect(lines.first).to_contain_text(name)
    page.goto(filtered)
    page.get_by_role("link", name="Clear").click()
    assert path_of(page) == f"/dashboard/jobs/{TRAINED}/logs"


def test_metrics_and_rollouts_are_downloaded(page: Page, downloads: Path) -> None:
    page.goto(f"/dashboard/jobs/{TRAINED}/export")
    for button, least in ((0, STEPS), (1, 16)):
        with page.expect_download() as started:
            page.get_by_role("button", name="Download CSV").nth(button).click()
        file = downloads / started.value.suggested_filename
        started.value.save_as(file)
        with file.open(newline="") as text:
            assert len(list(csv.DictReader(text))) >= least
