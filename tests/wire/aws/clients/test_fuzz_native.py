"""Schemathesis asks the native API, by the server's own description of it, for what it dislikes.

The server is one of its own, for the requests delete what they find. It has a finished job with its
models, an agent, a trail and a key. `TURNWISE_FUZZ=20` asks twenty times as much.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any
from unittest import SkipTest
from urllib.request import Request, urlopen

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
)

from tests.wire.aws.clients.service import Server, run_python

TIMES = float(os.environ.get("TURNWISE_FUZZ", "1"))
#: Of each operation.
EXAMPLES = 2
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
#: Names that are there, for the parameters of paths.
NAMES = ("walk", "walk/1", "package_1", "tool", "trail-a", "rol_a", "job_walk", "..", "a%00b")

_FURNISH = """
import asyncio, sys
from dataclasses import replace
from tests import builders
from turnwise.domain.job import JobStatus, Secondary
from turnwise.domain.rollout import RolloutStatus
from turnwise.storage.sql import SqlStore

async def main(database):
    store = SqlStore.open(database)
    await store.default_account()
    job = builders.job(status=JobStatus.COMPLETED, secondary=Secondary.COMPLETED,
                       started_at=1001.0, ended_at=1002.0)
    await store.create_job(job)
    await store.open_group(builders.group())
    await store.open_rollouts([builders.rollout()])
    nodes, turn = builders.turn_with_nodes()
    await store.commit_turn(job.account_id, "rol_a", nodes, turn)
    await store.register([builders.package(), builders.package(2)])
    await store.close()

asyncio.run(main({database!r}))
"""


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with something of each kind."""
    folder = tmp_path_factory.mktemp("fuzzed") / "data"
    (folder / "database").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    run_python(_FURNISH.replace("{database!r}", repr(str(folder / "database" / "turnwise.db"))))
    server = Server(folder, TURNWISE_MLFLOW="off")
    try:
        ask(server, "POST", "/api/v1/agents", {"name": "tool", "url": "http://127.0.0.1:9"})
        ask(
            server,
            "POST",
            "/api/v1/audit/trails",
            {"name": "trail-a", "folder": str(folder.parent)},
        )
        ask(server, "POST", "/api/v1/keys", {"name": "walk", "actions": ["read"]})
        yield server
    finally:
        server.stop()
        print(server.log.read_text())


def key(server: Server) -> str:
    return (server.data_dir / "admin.key").read_text().strip()


def ask(server: Server, method: str, path: str, body: object = None) -> Any:
    headers = {"Authorization": f"Bearer {key(server)}", "Content-Type": "application/json"}
    sent = None if body is None else json.dumps(body).encode()
    with urlopen(Request(server.url + path, sent, headers, method=method), timeout=20) as answer:
        return json.load(answer)


def operations(server: Server) -> list[Any]:
    """What the server says that it has."""
    description = ask(server, "GET", "/openapi.json")
    return [each.ok() for each in schemathesis.openapi.from_dict(description).get_all_operations()]


def harmless(case: Any) -> None:
    """Without what would make the test wait, or write outside of the server's folder."""
    if isinstance(case.query, dict):
        case.query.pop("wait_s", None)
    if isinstance(case.body, dict):
        case.body.pop("folder", None)


def test_the_native_api_has_an_answer_to_everything(furnished: Server):
    asked = 0
    auth = {"Authorization": f"Bearer {key(furnished)}"}
    session = requests.Session()

    def fuzz(operation: Any, mode: GenerationMode) -> None:
        @settings(
            max_examples=max(1, round(EXAMPLES * TIMES)),
            derandomize=TIMES <= 1,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), name=st.sampled_from(NAMES))
        def one(case: Any, name: str) -> None:
            nonlocal asked
            asked += 1
            harmless(case)
            for parameter in list(case.path_parameters or {}):
                if mode is GenerationMode.POSITIVE or asked % 2:
                    case.path_parameters[parameter] = name
            answer = case.call(base_url=furnished.url, headers=auth, session=session, timeout=20)
            case.validate_response(answer, checks=CHECKS)
            assert "Traceback" not in answer.text
            assert answer.status_code < 400 or str(furnished.data_dir) not in answer.text

        one()

    for operation in operations(furnished):
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(Unsatisfiable, SkipTest):  # nothing could be wrong with it
                fuzz(operation, mode)
    print(f"{asked} requests")
    assert asked > 100
    assert "Traceback" not in furnished.log.read_text()
