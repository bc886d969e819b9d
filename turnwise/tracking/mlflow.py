"""MLflow's REST calls that a run is fed with. https://mlflow.org/docs/latest/api_reference/rest-api.html"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from turnwise import errors

Json = dict[str, Any]

#: MLflow's own limits on one request.
MAX_METRICS, MAX_PARAMS, MAX_PARAM_CHARS, MAX_KEY_CHARS = 1000, 100, 6000, 250
MAX_TAG_CHARS, MAX_DIGEST_CHARS = 8000, 36

_API = "/api/2.0/mlflow/"
_TIMEOUT_S = 60.0
_NO_KEY = re.compile(r"[^A-Za-z0-9_\-. /:]")


class Refused(Exception):
    """MLflow says that the request is wrong: sending it again would not help."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(f"MLflow answered {status} {code}: {message}")


class Failed(errors.Unavailable):
    """MLflow answered with an error of its own (5xx)."""


def metric_key(name: str) -> str:
    """A metric's or parameter's name in the characters that MLflow allows.

    >>> metric_key("rollout/metrics/size (mm)/mean")
    'rollout/metrics/size _mm_/mean'
    """
    return _NO_KEY.sub("_", name)[:MAX_KEY_CHARS]


class Mlflow:
    """A client of one account's server. Every call raises `Unavailable` while it cannot answer,
    and `Refused` where it will not.
    """

    def __init__(self, address: Callable[[], Awaitable[str]]) -> None:
        """`address` gives the socket of the running server, and raises `Unavailable`."""
        self._address = address
        self._session: aiohttp.ClientSession | None = None
        self._at = ""

    async def close(self) -> None:
        """Free connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def experiment(self, name: str) -> str:
        """The id of the experiment of that name, which is made or taken out of the bin."""
        try:
            found = await self._get("experiments/get-by-name", {"experiment_name": name})
        except Refused as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return await self._new_experiment(name)
        experiment = found["experiment"]
        if experiment["lifecycle_stage"] == "deleted":
            await self._post("experiments/restore", {"experiment_id": experiment["experiment_id"]})
        return str(experiment["experiment_id"])

    async def _new_experiment(self, name: str) -> str:
        try:
            made = await self._post("experiments/create", {"name": name})
        except Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # another job was faster
                raise
            return await self.experiment(name)
        return str(made["experiment_id"])

    async def find_run(self, experiment_id: str, tag: str, value: str) -> str:
        """The id of the run with that tag; "" if there is none."""
        body = {
            "experiment_ids": [experiment_id],
            "filter": f"tags.`{tag}` = '{value}'",
            "max_results": 1,
        }
        runs = (await self._post("runs/search", body)).get("runs") or []
        return str(runs[0]["info"]["run_id"]) if runs else ""

    async def create_run(
        self, experiment_id: str, name: str, tags: Mapping[str, str], *, at: float
    ) -> str:
        """A new run's id. `at` is in seconds since the epoch."""
        body = {
            "experiment_id": experiment_id,
            "run_name": name,
            "start_time": round(at * 1000),
            "tags": _pairs(tags, MAX_TAG_CHARS),
        }
        made = await self._post("runs/create", body)
        return str(made["run"]["info"]["run_id"])

    async def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Parameters; the same again changes nothing."""
        pairs = _pairs({metric_key(key): value for key, value in params.items()}, MAX_PARAM_CHARS)
        for at in range(0, len(pairs), MAX_PARAMS):
            batch = {"run_id": run_id, "params": pairs[at : at + MAX_PARAMS]}
            await self._post("runs/log-batch", batch)

    async def log_metrics(
        self, run_id: str, values: Mapping[str, float], *, step: int, at: float
    ) -> None:
        """A step's metrics; the same again, with the same time, changes nothing."""
        metrics = [
            {"key": metric_key(name), "value": value, "timestamp": round(at * 1000), "step": step}
            for name, value in values.items()
        ]
        for first in range(0, len(metrics), MAX_METRICS):
            batch = {"run_id": run_id, "metrics": metrics[first : first + MAX_METRICS]}
            await self._post("runs/log-batch", batch)

    async def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags, in place of earlier ones of these names."""
        await self._post("runs/log-batch", {"run_id": run_id, "tags": _pairs(tags, MAX_TAG_CHARS)})

    async def log_datasets(self, run_id: str, datasets: Sequence[Json]) -> None:
        """A run's inputs, as MLflow's DatasetInput."""
        await self._post("runs/log-inputs", {"run_id": run_id, "datasets": list(datasets)})

    async def update_run(self, run_id: str, status: str, *, ended_at: float | None = None) -> None:
        """RUNNING, FINISHED, FAILED or KILLED."""
        body: Json = {"run_id": run_id, "status": status}
        if ended_at is not None:
            body["end_time"] = round(ended_at * 1000)
        await self._post("runs/update", body)

    async def upload(self, run_id: str, files: Iterable[tuple[Path, str]]) -> None:
        """Files as artifacts of a run, each with its path there."""
        run = await self._get("runs/get", {"run_id": run_id})
        uri = str(run["run"]["info"]["artifact_uri"])
        if not uri.startswith("mlflow-artifacts:/"):
            raise Refused(400, "INVALID_PARAMETER_VALUE", "the run's artifacts are kept elsewhere")
        root = uri.removeprefix("mlflow-artifacts:").strip("/")
        for file, path in files:
            with await asyncio.to_thread(file.open, "rb") as content:
                target = f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{root}/{path}')}"
                await self._send("PUT", target, data=content, timeout_s=600.0)

    async def post_spans(self, experiment_id: str, run_id: str, body: bytes) -> None:
        """One OTLP export: all of it or nothing is kept."""
        headers = {
            "content-type": "application/json",
            "x-mlflow-experiment-id": experiment_id,
            "x-mlflow-run-id": run_id,
        }
        await self._send("POST", "/v1/traces", data=body, headers=headers)

    # ── HTTP ──────────────────────────────────────────────────────────────────────────────────

    async def _get(self, path: str, query: Mapping[str, str]) -> Json:
        return await self._send("GET", _API + path, params=query)

    async def _post(self, path: str, body: Json) -> Json:
        return await self._send("POST", _API + path, json=body)

    async def _send(
        self, method: str, path: str, *, timeout_s: float = _TIMEOUT_S, **options: Any
    ) -> Json:
        session = await self._connected()
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with session.request(
                method, f"http://localhost{path}", timeout=timeout, **options
            ) as reply:
                body = await reply.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise errors.Unavailable(
                f"MLflow does not answer: {error or type(error).__name__}", retry_after_s=1.0
            ) from error
        if reply.status < 300:
            is_json = reply.content_type == "application/json"
            return _decoded(body) if is_json else {}
        said = _decoded(body)
        code, message = str(said.get("error_code", "")), str(said.get("message", body[:200]))
        if reply.status >= 500 or reply.status in (408, 429):
            raise Failed(f"MLflow answered {reply.status} {code}: {message}", retry_after_s=1.0)
        raise Refused(reply.status, code, message)

    async def _connected(self) -> aiohttp.ClientSession:
        address = await self._address()
        if self._session is None or self._at != address:
            await self.close()
            connector = aiohttp.UnixConnector(path=address)
            self._session, self._at = aiohttp.ClientSession(connector=connector), address
        return self._session


def _decoded(body: bytes) -> Json:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _pairs(values: Mapping[str, str], longest: int) -> list[Json]:
    return [{"key": key, "value": str(value)[:longest]} for key, value in values.items()]
