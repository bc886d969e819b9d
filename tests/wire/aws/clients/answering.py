"""Agents in the test's own process: an HTTP server whose every payload a function answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

Json = dict[str, Any]
#: (path, payload) -> (HTTP status, answer)
Behave = Callable[[str, Json], tuple[int, object]]


@contextmanager
def answering(behave: Behave) -> Iterator[str]:
    """A server that answers GET with health, and POST of a payload by `behave`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"status": "healthy"})

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*behave(self.path, payload))

        def _answer(self, status: int, body: object) -> None:
            sent = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the tests' output is theirs."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def post(url: str, body: object) -> Json:
    """The JSON that a POST of JSON is answered with."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        said: Json = json.load(answer)
    return said


def turn(payload: Json, messages: list[Json] | None = None) -> Json:
    """One turn of a rollout, of the prompt alone by default: the reply's message."""
    asked = messages or [{"role": "user", "content": payload["prompt"]}]
    url = f"{payload['metadata']['endpoint']}/v1/chat/completions"
    reply: Json = post(url, {"model": "default", "messages": asked})["choices"][0]["message"]
    return reply


def report(payload: Json, reward: float | None, *, status: str = "ready") -> None:
    """Complete a rollout, and score it unless `reward` is None, as an agent without any SDK."""
    metadata = payload["metadata"]
    subject = {"JobArn": metadata["jobArn"], "TrajectoryId": metadata["rolloutId"]}
    post(f"{metadata['endpoint']}/complete-rollout", {**subject, "Status": status})
    if reward is not None:
        post(f"{metadata['endpoint']}/update-reward", {**subject, "Rewards": [reward]})
