"""A user's server of remote rollouts, with eval-protocol's own requests and log handler.

The text of a row says how its rollout goes: one that "fails" logs an error at the account's own
gateway, one that "is silent" never says that it has ended, any other asks the model twice and logs
where the model is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from eval_protocol import FireworksTracingHttpHandler, InitRequest, RolloutIdFilter, Status
from openai import OpenAI


@contextlib.contextmanager
def a_remote_server(admin_key: Path) -> Iterator[str]:
    """Its URL. `admin_key` is a file with a key of the account's, once the job runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(admin_key))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(admin_key: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked = InitRequest(**json.loads(body))
            threading.Thread(target=_roll_out, args=(asked, admin_key), daemon=True).start()
            self.send_response(200 if self.path == "/init" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _roll_out(asked: InitRequest, admin_key: Path) -> None:
    assert asked.model_base_url is not None
    assert asked.messages is not None
    rollout_id, text = asked.metadata.rollout_id, str(asked.messages[0].content)
    run_url = asked.model_base_url.partition("/rollout_id/")[0]
    if "fails" in text:
        server = run_url.partition("/e/")[0]
        os.environ["FIREWORKS_API_KEY"] = admin_key.read_text().strip()
        log = _logger(rollout_id, f"{server}/litellm-gateway")
        log.error("ending", extra={"status": Status.rollout_error("the browser crashed")})
        return
    client = OpenAI(base_url=asked.model_base_url, api_key=asked.api_key, max_retries=0)
    messages = [message.model_dump(exclude_none=True) for message in asked.messages]
    for more in ("and now?", ""):
        answered = client.chat.completions.create(
            model=asked.completion_params["model"], messages=messages, max_tokens=4
        )
        said = answered.choices[0].message.content or ""
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": more}]
    if "is silent" not in text:
        log = _logger(rollout_id, run_url)
        log.info("done", extra={"status": Status.rollout_finished()})


def _logger(rollout_id: str, gateway: str) -> logging.Logger:
    log = logging.getLogger(f"remote.{rollout_id}")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(FireworksTracingHttpHandler(gateway_base_url=gateway))
    log.addFilter(RolloutIdFilter(rollout_id))
    return log
