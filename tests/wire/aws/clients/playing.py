"""An agent that plays each rollout by itself: two turns, and rewards that differ in each group."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from tests.wire.aws.clients.answering import Json, answering, report, turn


class Player:
    """The agent's mind. `held()` keeps rollouts before their first turn, so that a job goes on."""

    def __init__(self) -> None:
        self._gate = threading.Event()
        self._gate.set()
        self._counts: defaultdict[str, itertools.count[int]] = defaultdict(itertools.count)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No rollout goes on meanwhile."""
        self._gate.clear()
        try:
            yield
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Leave no rollout waiting."""
        self._gate.set()

    def play(self, path: str, payload: Json) -> tuple[int, object]:
        """One rollout."""
        self._gate.wait()
        try:
            asked = [{"role": "user", "content": payload["prompt"]}]
            reply = turn(payload, asked)
            turn(payload, [*asked, reply, {"role": "user", "content": "more"}])
            # By the prompt, so that no group is without a difference to learn from.
            report(payload, float(next(self._counts[payload["prompt"]]) % 2))
        except URLError:
            pass  # the job has been stopped meanwhile
        return 200, {}


@contextmanager
def playing() -> Iterator[tuple[Player, str]]:
    """A player and its URL, ended at the end."""
    player = Player()
    with answering(player.play) as url:
        try:
            yield player, url
        finally:
            player.let_go()
