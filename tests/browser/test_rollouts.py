"""Rollouts: their list, and the page of one."""

from __future__ import annotations

import json
import re

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import NewPage, path_of
from tests.browser.every_page import PAGES
from tests.browser.world import TRAINED, World

LIST = f"/dashboard/jobs/{TRAINED}/rollouts"


def _rows(page: Page) -> Locator:
    return page.get_by_role("region", name="Rollouts").get_by_role("rowheader")


def test_a_filter_narrows_the_list_without_a_load_and_back_undoes_it(page: Page) -> None:
    page.goto(LIST)
    page.evaluate("window.kept = true")
    page.get_by_label("Status").select_option("FAILED")
    expect(page).to_have_url(re.compile("status=FAILED"))
    chip = page.get_by_role("link", name=re.compile("^Remove the filter"))
    expect(chip).to_be_visible()
    expect(page.get_by_role("cell", name="agent_error").first).to_be_visible()
    assert page.evaluate("window.kept")
    page.go_back()
    expect(chip).to_have_count(0)
    expect(page.get_by_label("Status")).to_have_value("")


def test_search_finds_words_of_prompts_and_keeps_the_cursor(page: Page) -> None:
    page.goto(LIST)
    field = page.get_by_label("Search prompts and messages")
    field.press_sequentially("AC05")
    expect(page).to_have_url(re.compile("text=AC05"))
    expect(page.get_by_role("link", name=re.compile("^Remove the filter"))).to_be_visible()
    expect(field).to_be_focused()
    expect(page.get_by_role("cell", name=re.compile("Aircraft AC05")).first).to_be_visible()
    expect(page.get_by_role("cell", name=re.compile("Aircraft AC06"))).to_have_count(0)


def test_a_column_sorts_and_a_bar_of_the_histogram_chooses_its_scores(page: Page) -> None:
    page.goto(LIST)
    page.get_by_role("columnheader", name="Score").get_by_role("link").click()
    expect(page).to_have_url(re.compile("sort=reward"))
    head = page.get_by_role("columnheader", name="Score")
    expect(head).to_have_attribute("aria-sort", re.compile("ascending|descending"))
    bar = page.get_by_role("link", name=re.compile(r"^[1-9]\d* rollouts with a score")).last
    count = int((bar.get_attribute("aria-label") or "").split()[0])
    bar.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("min="))
    expect(_rows(page)).to_have_count(min(count, 50))


def test_pages_of_the_list_follow_each_other(page: Page) -> None:
    page.goto(f"{LIST}?size=25")
    expect(_rows(page)).to_have_count(25)
    first = _rows(page).first.inner_text()
    page.get_by_role("link", name="Next 25").click()
    expect(page.get_by_role("link", name="Back")).to_be_visible()
    assert _rows(page).first.inner_text() != first
    page.get_by_role("link", name="Back").click()
    expect(page.get_by_role("link", name="Back")).to_have_count(0)
    assert _rows(page).first.inner_text() == first


def test_a_rollout_shows_turns_tool_calls_and_a_fork(page: Page, world: World) -> None:
    page.goto(PAGES["rollout"](world))
    turns = page.get_by_role("heading", name=re.compile(r"^Turn \d"))
    expect(turns).to_have_count(3)
    expect(page.get_by_text('"aircraft": "AC01"').first).to_be_visible()  # a short call is unfolded
    long = page.get_by_text("reading 3 of the hydraulic pump").first
    expect(long).to_be_hidden()
    page.get_by_text("report", exact=True).first.click()
    expect(long).to_be_visible()
    expect(page.get_by_text("Branch B begins here")).to_be_visible()
    changes = page.get_by_role("group", name="Differences")
    expect(changes.get_by_text("removed:").first).to_be_attached()
    expect(changes.get_by_text("added:").first).to_be_attached()


def test_tokens_come_when_they_are_asked_for_with_logprobs(page: Page, world: World) -> None:
    page.goto(PAGES["rollout"](world))
    expect(page.get_by_text("sampled tokens at temperature")).to_have_count(0)
    page.get_by_text("Exact tokens", exact=True).first.click()
    said = page.get_by_text("sampled tokens at temperature 1")
    expect(said).to_be_visible()
    page.get_by_text("Numbers", exact=True).click()
    table = page.get_by_role("region", name="Tokens in numbers").get_by_role("row")
    expect(table.nth(1)).to_contain_text(re.compile(r"-\d+\.\d{4}"))


def test_siblings_are_a_key_away_and_side_by_side(page: Page, world: World) -> None:
    page.goto(f"/dashboard/rollouts/{world.rollout(purpose='train')}")
    first = path_of(page)
    page.get_by_role("link", name="Next sibling").click()
    expect(page.get_by_role("link", name="Previous sibling")).to_be_visible()
    page.get_by_role("link", name="Previous sibling").click()
    expect(page).to_have_url(re.compile(re.escape(first)))
    page.get_by_role("link", name="All side by side").click()
    expect(page.get_by_role("heading", name=re.compile("attempts side by side"))).to_be_visible()
    page.get_by_role("link", name="Compare with this one").first.click()
    expect(page).to_have_url(re.compile("beside="))


def test_a_rollout_is_copied_as_json(new_page: NewPage, world: World) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    rollout_id = world.rollout(purpose="train")
    page.goto(f"/dashboard/rollouts/{rollout_id}")
    page.get_by_role("button", name="Copy as JSON").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied == world.client.rollout(rollout_id)
