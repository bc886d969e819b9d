"""Stop strings: where the first one is complete, and what may be shown before that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from turnwise.domain.rollout import Tokens
from turnwise.errors import InvalidInput
from turnwise.ports import StopScan
from turnwise.rendering.tokenizer import Tokenizer


class StopStrings:
    """`ports.StopStrings`: watches one completion, as bytes, so that cuts of tokens do not matter.

    A stop string counts wherever it appears in the text, reasoning included.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        for i, string in enumerate(strings):
            if not string:
                raise InvalidInput(f"stop[{i}]", string, "is empty")
        self._tokenizer = tokenizer
        self._stops = [string.encode("utf-8", "replace") for string in strings]
        self._longest = max(map(len, self._stops), default=0)
        self._held: list[int] = []  # tokens not released yet
        self._bytes = b""  # theirs
        self._seen = 0
        self._kept: int | None = None

    def feed(self, tokens: Tokens) -> StopScan:
        """Look at the next sampled tokens; nothing after the completing one is looked at."""
        released: list[int] = []
        for token in tokens.tolist():
            if self._kept is not None:
                break
            self._seen += 1
            self._held.append(token)
            self._bytes += self._tokenizer.token_bytes(token)
            at = min((p for stop in self._stops if (p := self._bytes.find(stop)) >= 0), default=-1)
            if at >= 0:
                self._kept = self._seen
                released += self._before(at)
                self._held, self._bytes = [], b""
            else:
                released += self._release()
        return StopScan(readable=np.asarray(released, np.int32), kept=self._kept)

    def finish(self) -> Tokens:
        """The tokens still held: sampling ended for another reason."""
        held, self._held, self._bytes = self._held, [], b""
        return np.asarray(held, np.int32)

    def _release(self) -> list[int]:
        """Tokens that end before the earliest place where a stop string may have begun."""
        safe = len(self._bytes) - _unfinished(self._bytes, self._stops, self._longest)
        count = size = 0
        for token in self._held:
            length = len(self._tokenizer.token_bytes(token))
            if size + length > safe:
                break
            count, size = count + 1, size + length
        released, self._held = self._held[:count], self._held[count:]
        self._bytes = self._bytes[size:]
        return released

    def _before(self, at: int) -> list[int]:
        """The held tokens up to a byte; one that the stop string begins in, byte by byte."""
        before: list[int] = []
        for token in self._held:
            piece = self._tokenizer.token_bytes(token)
            if len(piece) > at:
                byte_ids = self._tokenizer.byte_ids
                return before + [byte_ids[byte] for byte in piece[:at] if byte in byte_ids]
            before.append(token)
            at -= len(piece)
        return before


def _unfinished(text: bytes, stops: Sequence[bytes], longest: int) -> int:
    """How many bytes at the end may be the beginning of a stop string."""
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
