"""Stop strings: the first one wins, wherever tokens are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from turnwise.domain.rollout import Tokens
from turnwise.errors import InvalidInput
from turnwise.ports import Renderer
from turnwise.rendering.tokenizer import Tokenizer

texts = st.text(st.sampled_from("ab\né🙂 weather"), max_size=30)
stop_strings = st.lists(st.text(st.sampled_from("ab\né🙂 "), min_size=1, max_size=4), max_size=3)


def watched(
    renderer: Renderer, stops: Sequence[str], pieces: Sequence[Tokens]
) -> tuple[str, int | None]:
    """The readable text, and how many tokens are kept."""
    watcher = renderer.stops(stops)
    scans = [watcher.feed(piece) for piece in pieces]
    readable = np.concatenate([*(scan.readable for scan in scans), watcher.finish()])
    return renderer.decode(readable), scans[-1].kept


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=texts, stops=stop_strings, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_the_text_ends_before_the_first_complete_stop_string(
    renderers: Mapping[str, Renderer],
    folders: Mapping[str, Path],
    text: str,
    stops: list[str],
    cuts: list[int],
) -> None:
    renderer, tokenizer = renderers["qwen3"], Tokenizer.load(folders["qwen3"])
    ids = tokenizer.encode(text)
    tokens = np.asarray(ids, np.int32)
    expected: tuple[str, int | None] = (text, None)
    for kept in range(1, len(ids) + 1):
        raw = b"".join(map(tokenizer.token_bytes, ids[:kept]))
        if found := [raw.find(s.encode()) for s in stops if s.encode() in raw]:
            expected = (raw[: min(found)].decode(), kept)
            break
    pieces = np.split(tokens, sorted(min(cut, len(ids)) for cut in cuts))
    assert watched(renderer, stops, pieces) == expected


def test_only_what_may_begin_a_stop_string_is_held_back(
    renderers: Mapping[str, Renderer], folders: Mapping[str, Path]
) -> None:
    renderer, tokenizer = renderers["qwen3"], Tokenizer.load(folders["qwen3"])
    watcher = renderer.stops(["\n\nUser:"])
    shown = [
        renderer.decode(watcher.feed(np.asarray(tokenizer.encode(text), np.int32)).readable)
        for text in ("It rains.", "\n", "\n", "Us", "ually it does.")
    ]
    assert shown == ["It rains.", "", "", "", "\n\nUsually it does."]


def test_without_stop_strings_everything_is_readable_at_once(
    renderers: Mapping[str, Renderer],
) -> None:
    scan = renderers["qwen3"].stops([]).feed(np.asarray([5, 6], np.int32))
    assert (scan.readable.tolist(), scan.kept) == ([5, 6], None)


def test_an_empty_stop_string_is_refused(renderers: Mapping[str, Renderer]) -> None:
    with pytest.raises(InvalidInput, match=r"stop\[1\]: '' is empty"):
        renderers["qwen3"].stops(["a", ""])
