"""In and out."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import NewPage, Watch
from tests.browser.world import RUNNING, World


def test_who_signs_in_gets_the_page_they_wanted_and_signing_out_closes_it(
    world: World, new_page: NewPage
) -> None:
    page = new_page("nobody")
    page.goto(f"/dashboard/jobs/{RUNNING}")
    page.get_by_label("Access key").fill(world.reader_key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1, name=RUNNING)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto("/dashboard")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_a_wrong_key_is_refused_with_words_beside_the_field(
    new_page: NewPage, watch: Watch
) -> None:
    page = new_page("nobody")
    page.goto("/dashboard/sign-in")
    page.get_by_label("Access key").fill("of another server")
    watch.expect("401 of ")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("No such key")
