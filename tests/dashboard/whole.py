"""What holds for every page: it can be read, used by keyboard, and does without script."""

from __future__ import annotations

from html.parser import HTMLParser

import httpx

_VOID = {"meta", "link", "input", "br", "path", "img", "hr", "option"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.headings = 0
        self.problems: list[str] = []
        self.labelled: set[str] = set()
        self.inputs: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.scripts_inside = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        its = dict(attrs)
        self.headings += tag == "h1"
        if tag not in _VOID:
            self.open.append(tag)
        if its.get("id"):
            self.ids.append(str(its["id"]))
        if tag == "th" and its.get("scope") not in ("col", "row"):
            self.problems.append(f"a header without scope: {self.get_starttag_text()}")
        if "style" in its or any(name.startswith("on") for name in its):
            self.problems.append(f"inline code: {self.get_starttag_text()}")
        if tag == "script" and not its.get("src"):
            self.problems.append("inline script")
        if tag == "label" and its.get("for"):
            self.labelled.add(str(its["for"]))
        if tag in ("input", "select", "textarea") and its.get("type") != "hidden":
            is_inside = "label" in self.open
            self.inputs.append({**its, "inside": "yes" if is_inside else None})

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


def whole(reply: httpx.Response, status: int = 200) -> str:
    """The page's text, once it is sure that it is a whole page."""
    assert reply.status_code == status, reply.text
    reader = _Reader()
    reader.feed(reply.text)
    assert reader.headings == 1, f"{reader.headings} main headings"
    assert not reader.problems, reader.problems
    assert len(reader.ids) == len(set(reader.ids)), sorted(reader.ids)
    for each in reader.inputs:
        is_named = each["inside"] or each.get("aria-label") or each.get("id") in reader.labelled
        assert is_named, f"an input without a label: {each}"
    assert 'href="#content"' in reply.text
    return reply.text
