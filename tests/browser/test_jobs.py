"""The list of jobs, and what is done to jobs from it."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import NewPage, Watch, path_of
from tests.browser.world import BROKEN, EVALUATED, RUNNING, TRAINED, World


def test_the_list_shows_a_running_job_going_on_and_leaves_the_keyboard_where_it_is(
    page: Page,
) -> None:
    page.goto("/dashboard")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=RUNNING, exact=True))
    expect(row).to_contain_text("RUNNING")
    box = page.get_by_role("checkbox", name=f"Choose {RUNNING}")
    box.focus()
    page.keyboard.press("Space")
    before = row.get_by_text("step ").inner_text()
    expect(row.get_by_text("step ")).not_to_have_text(before)
    expect(box).to_be_checked()
    expect(box).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name=RUNNING, exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1, name=RUNNING)).to_be_visible()


def test_a_filter_is_in_the_address_and_back_undoes_it(page: Page) -> None:
    page.goto("/dashboard")
    page.get_by_label("State").select_option("FAILED")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("state=FAILED"))
    expect(page.get_by_role("link", name=BROKEN, exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=TRAINED, exact=True)).to_have_count(0)
    page.go_back()
    expect(page.get_by_role("link", name=TRAINED, exact=True)).to_be_visible()
    assert path_of(page) == "/dashboard"


def test_jobs_that_are_chosen_are_compared(page: Page) -> None:
    page.goto("/dashboard")
    compare = page.get_by_role("button", name="Compare")
    expect(compare).to_be_disabled()
    for job in (TRAINED, RUNNING):
        page.get_by_role("checkbox", name=f"Choose {job}", exact=True).check()
    compare.click()
    expect(page.get_by_role("heading", name="Compare 2 jobs")).to_be_visible()
    expect(page.get_by_role("rowheader", name="batch.global_batch_size")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Training reward")).first).to_be_visible()


def test_a_job_is_started_by_a_form_cancelled_resumed_and_deleted(
    page: Page, world: World, watch: Watch
) -> None:
    page.goto("/dashboard")
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Name (needed)").fill("from-the-form")
    page.get_by_label("Base model (needed)").fill(world.client.job(TRAINED)["spec"]["model"])
    page.get_by_label("Dataset (needed)").fill(str(world.folder / "rows.jsonl"))
    page.get_by_role("combobox", name="Kind").select_option("python")
    page.get_by_label("Target").fill("tests.browser.agents:inspect")
    watch.expect("400 of ")
    page.get_by_label("Rollouts per group").fill("1")
    preview = page.get_by_role("complementary", name="Job file")
    expect(preview).to_contain_text("group_size: 1")
    page.get_by_role("button", name="Start job").click()
    wrong = page.get_by_label("Rollouts per group")
    expect(wrong).to_have_attribute("aria-invalid", "true")
    expect(wrong).to_have_accessible_description(re.compile("use at least 2"))
    expect(page.get_by_label("Name (needed)")).to_have_value("from-the-form")
    wrong.fill("4")
    page.get_by_role("button", name="Start job").click()
    expect(page.get_by_role("heading", level=1, name="from-the-form")).to_be_visible()
    _act(page, "Cancel", "from-the-form")
    expect(page.get_by_text("CANCELLED").first).to_be_visible()
    _act(page, "Resume", "from-the-form")
    expect(page.get_by_text("PENDING").first).to_be_visible()
    _act(page, "Cancel", "from-the-form")
    expect(page.get_by_text("CANCELLED").first).to_be_visible()
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Delete from-the-form").click()
    expect(page.get_by_role("heading", level=1, name="from-the-form")).to_be_visible()
    _act(page, "Delete", "from-the-form")
    expect(page.get_by_role("heading", level=1, name="Jobs", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="from-the-form", exact=True)).to_have_count(0)


def _act(page: Page, label: str, job: str) -> None:
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"{label} {job}").click()


def test_a_reader_is_offered_nothing_that_changes_anything(new_page: NewPage) -> None:
    page = new_page("reader")
    actions = re.compile(r"^(Cancel|Resume|Delete|Save|Start)\b|^New job|^Evaluate$")
    for path in (
        "/dashboard",
        f"/dashboard/jobs/{RUNNING}",
        f"/dashboard/jobs/{TRAINED}",
        f"/dashboard/jobs/{EVALUATED}",
        "/dashboard/models",
    ):
        page.goto(path)
        expect(page.get_by_text("read only")).to_be_visible()
        expect(page.get_by_role("button", name=actions)).to_have_count(0)
        expect(page.get_by_role("link", name=actions)).to_have_count(0)


def test_the_theme_is_chosen_by_a_button_and_kept(page: Page) -> None:
    page.goto("/dashboard")
    paper = "getComputedStyle(document.body).backgroundColor"
    page.get_by_role("button", name="Colour theme: automatic").click()
    light = page.evaluate(paper)
    page.get_by_role("button", name="Colour theme: light").click()
    dark = page.evaluate(paper)
    assert light != dark
    page.goto(f"/dashboard/jobs/{TRAINED}")
    expect(page.get_by_role("button", name="Colour theme: dark")).to_be_visible()
    assert page.evaluate(paper) == dark
