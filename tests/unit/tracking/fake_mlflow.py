"""MLflow's REST as far as a feed calls it, in memory, on a Unix socket; it fails when told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

Json = dict[str, Any]
Trouble = Callable[[web.Request, bytes], Awaitable[web.Response | None]]


class FakeMlflow:
    """What it was told; `trouble` may answer a request in its place, or hang."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.experiments: dict[str, str] = {}  # name -> id
        self.runs: dict[str, Json] = {}
        self.metrics: set[tuple[str, str, int, float, int]] = set()
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.datasets: list[Json] = []
        self.statuses: list[str] = []
        self.files: dict[str, bytes] = {}
        self.traces: dict[str, list[Json]] = {}  # by trace id
        self.batches: list[int] = []  # traces in each accepted batch
        self.requests: list[str] = []
        self.trouble: Trouble | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        self.address.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(self.address)).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def at(self) -> str:
        return str(self.address)

    def steps(self, name: str) -> list[int]:
        """The steps that a metric has a value of, once for each time it was kept."""
        return sorted(step for _, key, step, _, _ in self.metrics if key == name)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(request.path)
        if self.trouble is not None and (answer := await self.trouble(request, body)) is not None:
            return answer
        return self.keep(request, body)

    def keep(self, request: web.Request, body: bytes) -> web.Response:
        """Do what is asked for."""
        if request.path == "/v1/traces":
            return self._spans(request, json.loads(body))
        if request.method == "PUT":
            self.files[request.path] = body
            return web.json_response({})
        name = request.path.removeprefix("/api/2.0/mlflow/").replace("/", "_").replace("-", "_")
        given = json.loads(body) if body else dict(request.query)
        return web.json_response(getattr(self, "_" + name)(given))

    def _experiments_get_by_name(self, given: Json) -> Json:
        name = given["experiment_name"]
        if name not in self.experiments:
            raise refusal(404, "RESOURCE_DOES_NOT_EXIST")
        return {
            "experiment": {"experiment_id": self.experiments[name], "lifecycle_stage": "active"}
        }

    def _experiments_create(self, given: Json) -> Json:
        self.experiments[given["name"]] = str(len(self.experiments) + 1)
        return {"experiment_id": self.experiments[given["name"]]}

    def _runs_search(self, given: Json) -> Json:
        return {"runs": [{"info": info} for info in self.runs.values()]}

    def _runs_create(self, given: Json) -> Json:
        run_id = f"run{len(self.runs) + 1}"
        root = f"mlflow-artifacts:/{given['experiment_id']}/{run_id}/artifacts"
        self.runs[run_id] = {"run_id": run_id, "name": given["run_name"], "artifact_uri": root}
        self.tags |= {tag["key"]: tag["value"] for tag in given["tags"]}
        return {"run": {"info": self.runs[run_id]}}

    def _runs_get(self, given: Json) -> Json:
        return {"run": {"info": self.runs[given["run_id"]]}}

    def _runs_log_batch(self, given: Json) -> Json:
        for each in given.get("metrics", []):
            point = (each["key"], each["step"], each["value"], each["timestamp"])
            self.metrics.add((given["run_id"], *point))
        self.params |= {each["key"]: each["value"] for each in given.get("params", [])}
        self.tags |= {each["key"]: each["value"] for each in given.get("tags", [])}
        return {}

    def _runs_log_inputs(self, given: Json) -> Json:
        self.datasets = given["datasets"]
        return {}

    def _runs_update(self, given: Json) -> Json:
        self.statuses.append(given["status"])
        return {}

    def _spans(self, request: web.Request, given: Json) -> web.Response:
        assert request.headers["x-mlflow-experiment-id"] in self.experiments.values()
        spans = given["resourceSpans"][0]["scopeSpans"][0]["spans"]
        batch: dict[str, list[Json]] = {}
        for span in spans:
            batch.setdefault(span["traceId"], []).append(span)
        self.traces |= batch
        self.batches.append(len(batch))
        return web.Response(content_type="application/x-protobuf")


def refusal(status: int, code: str) -> web.HTTPException:
    """An error as MLflow answers it."""
    text = json.dumps({"error_code": code, "message": "told to fail"})
    cls = {400: web.HTTPBadRequest, 404: web.HTTPNotFound}[status]
    return cls(text=text, content_type="application/json")


def trace_ids(body: bytes) -> set[str]:
    """The traces of an export."""
    spans = json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    return {span["traceId"] for span in spans}


@asynccontextmanager
async def fake_mlflow(folder: Path) -> AsyncIterator[FakeMlflow]:
    """A running one."""
    fake = FakeMlflow(folder / "m.sock")
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


async def until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.01)
