"""One server and one Chromium for all tests; each test has a browser context of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Request,
    Response,
    StorageState,
    expect,
    sync_playwright,
)

from tests.browser.chromium import ARGUMENTS, signed_in
from tests.browser.world import World
from tests.browser.world import world as made_world

#: Milliseconds; the machine may be busy.
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)

#: Makes a page signed in with the operator's key; `options` are the context's.
NewPage = Callable[..., Page]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with made_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "chromium is not installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def sessions(world: World, chromium: Browser) -> dict[str, StorageState]:
    """What browsers of the operator and of a reader hold once they have signed in."""
    return {
        "admin": signed_in(chromium, world.url, world.admin_key),
        "reader": signed_in(chromium, world.url, world.reader_key),
    }


class Watch:
    """What goes wrong in a test's pages. A test fails on anything that it does not expect."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._expected: list[str] = []

    def expect(self, words: str) -> None:
        """Some problem says this."""
        self._expected.append(words)

    def look_at(self, page: Page) -> None:
        """Hear of everything that goes wrong in it."""
        page.on("console", lambda said: self._console(said.type, said.text))
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._answered)

    def check(self) -> None:
        """Fail on what nobody expected, and on what was expected in vain."""
        missing = [e for e in self._expected if not any(e in p for p in self.problems)]
        left = [p for p in self.problems if not any(e in p for e in self._expected)]
        assert not left, left
        assert not missing, f"expected in vain: {missing}"

    def _console(self, kind: str, text: str) -> None:
        # Of a refused request the answer's status is told by `_answered`, with its address.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.problems.append(f"console: {text}")

    def _failed(self, request: Request) -> None:
        # Leaving a page ends its streams, and a download is no page.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"request failed: {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status} of {response.url}")


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.check()


@pytest.fixture
def new_page(
    world: World, chromium: Browser, sessions: dict[str, StorageState], watch: Watch
) -> Iterator[NewPage]:
    opened: list[BrowserContext] = []

    def make(who: str = "admin", **options: Any) -> Page:
        given: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}} | options
        context = chromium.new_context(base_url=world.url, storage_state=sessions.get(who), **given)
        context.set_default_timeout(PATIENCE_MS)
        opened.append(context)
        page = context.new_page()
        watch.look_at(page)
        return page

    yield make
    for context in opened:
        context.close()


@pytest.fixture
def page(new_page: NewPage) -> Page:
    return new_page()


def path_of(page: Page) -> str:
    """Its path and query."""
    return re.sub(r"^\w+://[^/]+", "", page.url)


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")
