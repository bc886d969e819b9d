"""Lines of jobs' logs, and the patterns that filter them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.control.log_lines import line, parse_filter
from turnwise.control.logs import Line, Span, filtered, page_of
from turnwise.domain.event import Event, EventKind, Level


def event(kind: EventKind, body: dict[str, Any], level: Level = Level.INFO) -> Event:
    return Event(seq=1, job_id="job_a", at=0.0, kind=kind, level=level, body=body)


def test_events_read_as_sentences_on_one_line() -> None:
    fault = {"blame": "agent", "code": "deadline", "message": "not completed\nwithin 5 s"}
    failed = {"rollout_id": "rollout_a", "status": "FAILED", "turns": 0, "fault": fault}
    assert line(event(EventKind.ROLLOUT, failed, Level.WARNING)) == (
        "WARNING rollout rollout_a FAILED turns=0 agent deadline: not completed within 5 s"
    )
    status = {"status": "FAILED", "secondary": "Failed", "message": "no reward"}
    assert line(event(EventKind.STATUS, status)) == "status FAILED (Failed): no reward"
    assert line(event(EventKind.STATUS, {"status": "RUNNING"})) == "status RUNNING"
    metrics = {"step": 3, "values": {"z": 1.0, "training/loss": 0.25}}
    assert line(event(EventKind.METRICS, metrics)) == "step 3 training/loss=0.25 z=1"
    progress = {"message": "evaluated", "completed": 3, "total": 4}
    assert line(event(EventKind.LOG, progress)) == "evaluated (3 of 4)"


TERMS = st.text(alphabet="abc \"'?-\\{}", min_size=1).filter(lambda text: text.strip())


@given(TERMS, st.text(alphabet="abc \"'?-\\{}"))
def test_a_quoted_phrase_is_found_as_it_is(phrase: str, text: str) -> None:
    quoted = '"' + phrase.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_filter(quoted).matches(text) == (phrase in text)
    assert parse_filter("-" + quoted).matches(text) == (phrase not in text)
    assert parse_filter(f"?{quoted} ?zzz").matches(text) == (phrase in text)


def test_terms_must_all_be_there_and_one_of_the_alternatives() -> None:
    pattern = parse_filter("rollout ?FAILED ?REWARDED -retry")
    assert pattern.matches("rollout a FAILED")
    assert pattern.matches("rollout a REWARDED")
    assert not pattern.matches("rollout a OPEN")
    assert not pattern.matches("rollout a FAILED retry")
    assert parse_filter("").matches("anything")


@pytest.mark.parametrize("pattern", ["{ $.a = 1 }", "[a, b]", "%a+%", '"open'])
def test_a_pattern_of_another_kind_is_refused(pattern: str) -> None:
    with pytest.raises(errors.InvalidInput, match="filterPattern"):
        parse_filter(pattern)


class Given:
    """A stream of given lines."""

    created_at = 0.0

    def __init__(self, name: str, times: list[int]) -> None:
        self.name = name
        self._lines = [Line(ms, name, n + 1, f"{name} {n}") for n, ms in enumerate(sorted(times))]

    async def lines(self, after: int, span: Span) -> Any:
        for each in self._lines:
            if each.seq > after and span.holds(each.at_ms):
                yield each

    async def last(self, count: int, before: int | None, span: Span) -> list[Line]:
        raise NotImplementedError


@given(
    st.lists(st.lists(st.integers(0, 20), max_size=12), max_size=4),
    st.integers(1, 7),
    st.integers(0, 20),
)
async def test_pages_over_streams_hold_each_line_once_in_order_of_time(
    times: list[list[int]], count: int, since: int
) -> None:
    streams = [Given(f"s{n}", each) for n, each in enumerate(times)]
    span = Span(since=since)
    read: list[Line] = []
    place = None
    while True:
        page, place = await filtered(streams, parse_filter(""), span, place, count)
        read += page
        if place is None:
            break
    every = [each for stream in streams for each in await page_of(stream.lines(0, span), 10**6)]
    assert read == sorted(every)
    assert len({each.event_id for each in read}) == len(read)
