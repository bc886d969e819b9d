"""What holds for every page, whatever it shows."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any, Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import NewPage, Watch
from tests.browser.every_page import PAGES
from tests.browser.world import World

AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
RULES = {"runOnly": ["wcag2a", "wcag2aa"], "resultTypes": ["violations"]}
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast"]}, "resultTypes": ["violations"]}
PHONE = {"width": 390, "height": 844}

ROLES: tuple[Literal["heading", "columnheader", "rowheader", "term", "alert"], ...] = (
    *("heading", "columnheader", "rowheader", "term", "alert"),
)

#: Marks what a keyboard should reach, and writes down what it does reach and whether it shows.
_WATCH_FOCUS = """
() => {
  const all = [...document.querySelectorAll(
    'a[href], button, input, select, textarea, summary, [tabindex="0"]')];
  const wanted = all.filter((each) => !each.disabled && each.tabIndex >= 0
    && each.checkVisibility({visibilityProperty: true}));
  window.unreached = new Set(wanted);
  window.unshown = [];
  document.addEventListener('focusin', ({target}) => {
    unreached.delete(target);
    const style = getComputedStyle(target.querySelector('.catch') ?? target);
    if (style.outlineStyle === 'none' && style.fill === 'none') unshown.push(told(target));
  });
  window.told = (each) => each.outerHTML.slice(0, 160);
  return wanted.length;
}
"""
_UNREACHED = "() => [...unreached].filter((each) => each.isConnected).map(told)"


@pytest.fixture(scope="module")
def addresses(world: World) -> dict[str, str]:
    return {name: address(world) for name, address in PAGES.items()}


@pytest.fixture(params=list(PAGES))
def address(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    return addresses[request.param]


def test_a_page_has_no_accessibility_violation_in_either_theme(address: str, page: Page) -> None:
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page.goto(address)
    page.evaluate(AXE)
    found = _violations(page, RULES)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    found += _violations(page, COLOURS)
    assert not found


def _violations(page: Page, options: dict[str, Any]) -> list[str]:
    result = page.evaluate("(options) => axe.run(options)", options)
    return [
        f"{rule['id']}: {node['target']}: {node['failureSummary']}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]


def test_a_page_fits_a_phone(address: str, new_page: NewPage) -> None:
    page = new_page(viewport=PHONE)
    page.goto(address)
    width = page.evaluate("document.scrollingElement.scrollWidth")
    assert width <= PHONE["width"], page.evaluate(
        "() => [...document.querySelectorAll('main *, header *')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        ".slice(0, 8).map((e) => e.outerHTML.slice(0, 120))"
    )


def test_everything_on_a_page_is_reached_by_keyboard_and_shows_it(address: str, page: Page) -> None:
    page.goto(address)
    page.evaluate("document.activeElement.blur()")  # some pages focus a field by themselves
    for _ in range(page.evaluate(_WATCH_FOCUS) + 2):
        page.keyboard.press("Tab")
    assert page.evaluate(_UNREACHED) == []
    assert page.evaluate("unshown") == []


def test_the_skip_link_leads_past_the_header(page: Page) -> None:
    page.goto("/dashboard")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("main").locator(":focus")).to_have_count(1)


def test_a_page_shows_the_same_facts_without_script(address: str, new_page: NewPage) -> None:
    with_script, without = new_page(), new_page(java_script_enabled=False)
    with_script.goto(address)
    without.goto(address)
    legends = _facts(with_script.get_by_role("img"))  # script draws them
    assert _facts(with_script.get_by_role("main")) - legends <= _facts(without.get_by_role("main"))


def _facts(part: Locator) -> set[str]:
    """The words of its headings, its names and the heads of its tables."""
    return {
        " ".join(text.split())
        for role in ROLES
        for text in part.get_by_role(role).all_inner_texts()
        if not text.strip().isdecimal()  # the running job makes new steps and models meanwhile
    }


def test_a_page_that_does_not_exist_says_so(page: Page, watch: Watch) -> None:
    watch.expect("404 of ")
    page.goto("/dashboard/jobs/nobody")
    expect(page.get_by_role("alert")).to_contain_text("nobody")
    expect(page.get_by_role("link", name="All jobs", exact=True)).to_be_visible()
    assert re.search("Not here", page.get_by_role("heading").inner_text())
