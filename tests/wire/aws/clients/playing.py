"""An agent that plays each rollout by itself: one turn, and a reward of 0 or 1 by turns.

While its gate is shut, rollouts wait before their turn, so that a job goes on and on.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen


class Player:
    """The agent; `url` is where it listens."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self._count = itertools.count()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._play))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _play(self, payload: dict[str, Any]) -> None:
        self.gate.wait()
        metadata = payload["metadata"]
        endpoint, rollout = metadata["endpoint"], metadata["trajectory_id"]
        messages = [{"role": "user", "content": payload["prompt"]}]
        try:
            _post(f"{endpoint}/v1/chat/completions", {"model": "default", "messages": messages})
            _post(f"{endpoint}/complete-rollout", {"TrajectoryId": rollout, "Status": "ready"})
            reward = float(next(self._count) % 2)
            _post(f"{endpoint}/update-reward", {"TrajectoryId": rollout, "Rewards": [reward]})
        except URLError:
            return  # the job has been stopped meanwhile


@contextmanager
def playing() -> Iterator[Player]:
    """An agent that is ended at the end."""
    player = Player()
    try:
        yield player
    finally:
        player.close()


def _post(url: str, body: object) -> None:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        answer.read()


def _handler(play: Any) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"status": "healthy"})

        def do_POST(self) -> None:
            play(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._answer({})

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the tests' output is theirs."""

        def _answer(self, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
