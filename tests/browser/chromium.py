"""Debian's Chromium, and how to sign in with it."""

from __future__ import annotations

from playwright.sync_api import Browser, StorageState

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def signed_in(chromium: Browser, url: str, key: str) -> StorageState:
    """What a browser holds once it has signed in."""
    context = chromium.new_context(base_url=url)
    reply = context.request.post("/dashboard/sign-in", form={"key": key}, max_redirects=0)
    assert reply.status == 303, reply.text()
    state = context.storage_state()
    context.close()
    return state
