"""The server as it is plugged together, with something of each kind in it, asked over raw ASGI.

Nothing runs between two requests: the event loop turns only while one is answered. So what a
refused request may have changed can be seen by comparing the whole database before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import sqlite3
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlencode

from aiohttp import web
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests import builders
from tests.families import save_family
from tests.unit.control.kit import Loop
from tests.unit.gateway.kit import SECRET, SECRET_SHA256, Script
from tests.wire.aws.job_kit import RECIPE, ROLE, training
from turnwise import errors
from turnwise.app.doors import open_doors
from turnwise.app.jobs import Workshop
from turnwise.app.rooms import open_rooms
from turnwise.domain.audit import Category
from turnwise.domain.event import EventKind
from turnwise.domain.job import JobStatus, Secondary
from turnwise.rendering.family import load_renderer
from turnwise.sampling.scripted import ScriptedSampler
from turnwise.settings import Settings
from turnwise.wire.aws.door import Modelled
from turnwise.wire.aws.service import load_model
from turnwise.wire.aws.services import open_services

REGION = "us-west-2"
NUMBER = "000000000001"
URL = "http://server"

#: What changes by being asked: the audit trail, and agents' logs, which are told of calls.
_NOT_COMPARED = ("audit_", "agent_logs", "alembic_", "sqlite_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; header names lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    errors: tuple[str, ...] = ()  # what the server has logged as an error meanwhile

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request, as bytes on the wire would be: `target` is still percent-encoded."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Errors(logging.Handler):
    """What is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class Building:
    """One server in this process, and its operator's key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runner = asyncio.Runner()
        self._opened = contextlib.AsyncExitStack()
        self._errors = _Errors()
        logging.getLogger("turnwise").addHandler(self._errors)
        self.key = self.access_key_id = self.secret = ""
        self.known: dict[str, list[Any]] = {}
        self._made: list[tuple[str, str, dict[str, Any]]] = []
        self._runner.run(self._open())

    async def _open(self) -> None:
        model = save_family(self.folder / "models" / "tiny", "qwen3")
        (model / "turnwise-recipe.json").write_text(json.dumps(RECIPE))
        self.rows = self.folder / "rows.jsonl"
        self.rows.write_text('{"prompt": "go"}\n')
        self._opened.enter_context(mock.patch.object(Workshop, "start_job", _start))
        self._opened.enter_context(
            mock.patch("turnwise.launching.mlflow.MlflowServers.address", self._mlflow)
        )
        self._opened.enter_context(
            mock.patch("turnwise.launching.mlflow.MlflowServers.start", return_value=None)
        )
        await self._serve_mlflow()
        settings = Settings(
            data_dir=self.folder / "data", models_dir=str(model.parent), region=REGION
        )
        self.house = await self._opened.enter_async_context(open_rooms(settings, URL))
        self._app = await self._opened.enter_async_context(open_doors(self.house))
        self.key = (self.folder / "data" / "admin.key").read_text().strip()
        self._database = sqlite3.connect(self.house.base.folder.database)
        self._tables = [
            name
            for (name,) in self._database.execute(
                "SELECT name FROM sqlite_master WHERE type='table'"
            )
            if not name.startswith(_NOT_COMPARED)
        ]
        await self._furnish()

    async def _serve_mlflow(self) -> None:
        async def answer(request: web.Request) -> web.Response:
            return web.json_response({"read": len(await request.read())})

        served = web.Application(client_max_size=1 << 28)
        served.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(served, shutdown_timeout=0.1)
        await runner.setup()
        self._opened.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(self.folder / "mlflow.sock")).start()

    async def _mlflow(self, account_id: str) -> str:
        return str(self.folder / "mlflow.sock")

    def close(self) -> None:
        self._database.close()
        self._runner.run(self._opened.aclose())
        self._runner.close()
        logging.getLogger("turnwise").removeHandler(self._errors)

    # ── what is in it ─────────────────────────────────────────────────────────────────────────

    async def _furnish(self) -> None:
        [key] = [k for k in (await self._native("GET", "/keys"))["keys"] if k["access_key_id"]]
        self.access_key_id, self.secret = key["access_key_id"], self.key
        await self._native("POST", "/accounts", {"slug": "other"})
        for name, contract in (("tool", "http"), ("runtime", "agentcore"), ("fn", "lambda")):
            given = {"name": name, "url": "http://127.0.0.1:9", "as": contract}
            await self._native("POST", "/agents", given)
        await self._add_jobs()
        await self._s3("PUT", "/stuff")
        await self._s3("PUT", "/stuff/a/b.txt", b"content")
        await self._s3("PUT", "/trails")
        group = "/aws/lambda/fn"
        await self._json("logs", "CreateLogStream", logGroupName=group, logStreamName="one")
        await self._json("cloudtrail", "CreateTrail", Name="trail-a", S3BucketName="trails")
        await self._json("sagemaker", "CreateHub", HubName="mine", HubDescription="a hub")
        step = {
            "Name": "train",
            "Type": "Lineage",
            "Arguments": {"Actions": []},
        }
        self.definition = json.dumps({"Version": "2020-12-01", "Steps": [step]})
        await self._json(
            "sagemaker",
            "CreatePipeline",
            PipelineName="pipe",
            PipelineDefinition=self.definition,
            ClientRequestToken="t" * 32,
            RoleArn=ROLE,
        )
        begun = await self._json(
            "sagemaker", "StartPipelineExecution", PipelineName="pipe", ClientRequestToken="u" * 32
        )
        source = {"SourceUri": "s3://stuff/a/b.txt"}
        artifact = await self._json(
            "sagemaker", "CreateArtifact", ArtifactType="Model", Source=source
        )
        apps = await self._json("sagemaker", "ListMlflowApps")
        listed = await self._native("GET", "/agents")
        self._learn(begun, artifact, apps, listed)
        await asyncio.sleep(0.2)  # the execution comes to its end

    async def restore(self, *, is_s3: bool) -> None:
        """Make again what an accepted request has taken away, so that later ones find it."""
        if not is_s3:
            for service, operation, given in self._made:
                await self._ask(self.json_call(service, operation, json.dumps(given).encode()))
            with contextlib.suppress(errors.Conflict):
                await self._add_done()
            return
        for path, body in (("/stuff", b""), ("/stuff/a/b.txt", b"content"), ("/trails", b"")):
            await self._ask(self.signed("s3", Sent(method="PUT", target=path, body=body)))

    async def _add_jobs(self) -> None:
        store = self.house.base.store
        spec = builders.spec(model=str(self.folder / "models" / "tiny"), dataset=str(self.rows))
        done = await store.create_job(builders.job(spec=spec, status=JobStatus.RUNNING))
        await store.open_group(builders.group())
        renderer = load_renderer(self.folder / "models" / "tiny", done.spec.history)
        sampler = ScriptedSampler(Script(["hello", "there"]))
        self.house.workshop.gateway.attach(done, sampler, renderer)
        await self.house.workshop.gateway.open(
            [
                builders.rollout(
                    f"rol_{n}",
                    attempt=n,
                    secret_sha256=SECRET_SHA256,
                    deadline_at=4e9,
                )
                for n in range(64)
            ]
        )
        await store.register([builders.package(path=str(self.folder))])
        self._spec = replace(spec, name="done")
        await self._add_done()

    async def _add_done(self) -> None:
        await self.house.base.store.create_job(
            builders.job(
                "done",
                spec=self._spec,
                status=JobStatus.COMPLETED,
                secondary=Secondary.COMPLETED,
                started_at=1001.0,
                ended_at=1002.0,
            )
        )

    def _learn(self, begun: Any, artifact: Any, apps: Any, listed: Any) -> None:
        """Values that there are, by the lower-case names of members that hold such."""
        arn = f"arn:aws:sagemaker:{REGION}:{NUMBER}:"
        foreign = f"arn:aws:sagemaker:{REGION}:000000000002:"
        agents = [each["arn"] for each in listed["agents"]]
        groups = [f"{arn}model-package-group/walk", "walk"]
        execution = begun["PipelineExecutionArn"]
        resources = [
            f"{arn}job/AgentRFT/walk",
            f"{arn}pipeline/pipe",
            execution,
            artifact["ArtifactArn"],
            groups[0],
            f"{arn}model-package/walk/1",
            f"{foreign}job/AgentRFT/walk",
            f"{arn}hub/mine",
        ]
        document = json.dumps(training(f"file://{self.rows}"))
        self.known = {
            "jobname": ["walk", "done", "new-job"],
            "jobcategory": ["AgentRFT", "AgentRFTEvaluation"],
            "jobconfigschemaversion": ["1.0.0"],
            "jobconfigdocument": [document.replace("function:inspector", "function:fn")],
            "rolearn": [ROLE],
            "modelpackagegroupname": groups,
            "modelpackagename": [f"{arn}model-package/walk/1", f"{foreign}model-package/walk/1"],
            "modelpackagearn": [f"{arn}model-package/walk/1"],
            "modelpackagearnlist": [f"{arn}model-package/walk/1"],
            "pipelinename": ["pipe", f"{arn}pipeline/pipe", f"{foreign}pipeline/pipe"],
            "pipelinedefinition": [self.definition],
            "pipelineexecutionarn": [execution, execution.replace(NUMBER, "000000000002")],
            "artifactarn": [artifact["ArtifactArn"]],
            "hubname": ["mine", "SageMakerPublicHub", f"{arn}hub/mine"],
            "hubcontenttype": ["Model", "DataSet"],
            "hubcontentname": ["tiny", "rows"],
            "hubcontentversion": ["1.0.0"],
            "documentschemaversion": ["1.0.0"],
            "resourcearn": resources,
            "arn": [each["Arn"] for each in apps["Summaries"]],
            "trackingservername": ["default"],
            "name": ["trail-a", f"arn:aws:cloudtrail:{REGION}:{NUMBER}:trail/trail-a"],
            "trailname": ["trail-a"],
            "s3bucketname": ["trails", "stuff"],
            "loggroupname": ["/aws/lambda/fn", "/aws/sagemaker/Job/AgentRFT"],
            "logstreamname": ["one", "walk/events"],
            "functionname": ["fn", "tool", *agents],
            "agentruntimearn": agents,
            "agentruntimeid": [each["runtime_id"] for each in listed["agents"]],
            "policysourcearn": [ROLE],
            "sourceuri": ["s3://stuff/a/b.txt"],
            "datauri": ["s3://stuff/a/b.txt"],
            "eventcategory": [each.value for each in Category],
            "kind": [each.value for each in EventKind],
        }

    async def _native(self, method: str, path: str, body: object = None) -> Any:
        sent = b"" if body is None else json.dumps(body).encode()
        headers = self.bearer | {"content-type": "application/json"}
        answer = await self._ask(
            Sent(method=method, target=f"/api/v1{path}", headers=headers, body=sent)
        )
        assert answer.status < 300, answer.text
        return json.loads(answer.body)

    async def _json(self, service: str, operation: str, **given: Any) -> Any:
        answer = await self._ask(self.json_call(service, operation, json.dumps(given).encode()))
        assert answer.status == 200, answer.text
        if operation.startswith("Create"):
            self._made.append((service, operation, given))
        return json.loads(answer.body)

    async def _s3(self, method: str, path: str, body: bytes = b"") -> None:
        answer = await self._ask(self.signed("s3", Sent(method=method, target=path, body=body)))
        assert answer.status < 300, answer.text

    # ── asking ────────────────────────────────────────────────────────────────────────────────

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def secret_of_rollouts(self) -> str:
        return SECRET

    def json_call(self, service: str, operation: str, body: bytes) -> Sent:
        prefix = {"sagemaker": "SageMaker", "logs": "Logs_20140328"}.get(
            service, "CloudTrail_20131101"
        )
        headers = {
            "content-type": "application/x-amz-json-1.1",
            "x-amz-target": f"{prefix}.{operation}",
        }
        if service == "cloudtrail":
            headers["x-amz-target"] = f"com.amazonaws.cloudtrail.v20131101.{prefix}.{operation}"
        return self.signed(service, Sent(method="POST", target="/", headers=headers, body=body))

    def signed(self, service: str, sent: Sent) -> Sent:
        """The request with a signature by the operator's key."""
        request = AWSRequest(sent.method, URL + sent.target, dict(sent.headers), sent.body)
        credentials = Credentials(self.access_key_id, self.secret)
        if service == "s3":
            digest = sent.headers.get("x-amz-content-sha256")
            request.headers["X-Amz-Content-SHA256"] = (
                digest or hashlib.sha256(sent.body).hexdigest()
            )
            request.context["payload_signing_enabled"] = True
        signer = S3SigV4Auth if service == "s3" else SigV4Auth
        signer(credentials, service, REGION).add_auth(request)
        return replace(sent, headers=dict(request.headers.items()))

    def signed_in(self, service: str, sent: Sent) -> Sent:
        """Signed for a service by its name in botocore."""
        model = load_model(service)
        return self.signed(model.metadata.get("signingName", service), sent)

    @staticmethod
    def served(service: str) -> set[str]:
        """The operations of a service that the server has."""
        found: dict[str, set[str]] = {}
        for each in open_services(mock.MagicMock()):
            for one in getattr(each, "_planes", [each]):
                if isinstance(one, Modelled):
                    found[one._service.name] = set(one._service.handlers)
        return found[service]

    def quieten(self, parameters: bytes) -> None:
        """End what StartLogging has begun: a trail writes objects of every later request."""
        stop = self.json_call("cloudtrail", "StopLogging", parameters)
        assert self.ask(stop).status == 200

    def refurnish(self, *, is_s3: bool) -> None:
        """`restore`, for who is outside the loop."""
        self._runner.run(self.restore(is_s3=is_s3))

    def run(self, change: Coroutine[Any, Any, None]) -> None:
        """Change what is in it past all doors."""
        self._runner.run(change)

    def ask(self, sent: Sent) -> Answer:
        """Send a request and wait for the whole answer."""
        return self._runner.run(self._ask(sent))

    async def _ask(self, sent: Sent) -> Answer:
        path, _, query = sent.target.partition("?")
        headers = {"host": "server", **{k.lower(): v for k, v in sent.headers.items()}}
        headers.setdefault("content-length", str(len(sent.body)))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": sent.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1", "replace"),
            "query_string": query.encode("latin-1", "replace"),
            "root_path": "",
            "headers": [
                (k.encode("latin-1", "replace"), v.encode("latin-1", "replace"))
                for k, v in headers.items()
            ],
            "client": ("127.0.0.1", 1234),
            "server": ("server", 80),
        }
        messages: list[Any] = []
        came = [{"type": "http.request", "body": sent.body}]

        async def receive() -> Any:
            if came:
                return came.pop()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            messages.append(message)

        self._errors.seen.clear()
        async with asyncio.timeout(20):
            await self._app(scope, receive, send)
        head = messages[0]
        return Answer(
            status=head["status"],
            headers={k.decode("latin-1").lower(): v.decode("latin-1") for k, v in head["headers"]},
            body=b"".join(message.get("body", b"") for message in messages[1:]),
            errors=tuple(self._errors.seen),
        )

    # ── what a refusal must leave as it was ───────────────────────────────────────────────────

    def state(self) -> dict[str, str]:
        """A digest of each table."""
        found = {}
        for table in self._tables:
            rows = self._database.execute(f'SELECT * FROM "{table}"').fetchall()
            found[table] = f"{len(rows)} {hashlib.sha256(repr(rows).encode()).hexdigest()}"
        files = sorted(
            str(each) for each in self.house.base.folder.blobs.rglob("*") if each.is_file()
        )
        return found | {"files": f"{len(files)} {hashlib.sha256(repr(files).encode()).hexdigest()}"}


async def _start(workshop: Workshop, job: Any) -> Any:
    """A job's loop without an engine: it goes on until it is stopped."""
    return Loop(job, workshop.store)


def encoded(pairs: Mapping[str, Any]) -> str:
    """A query or a form."""
    return urlencode({k: v for k, v in pairs.items() if v is not None}, errors="surrogatepass")


@contextlib.contextmanager
def a_building(folder: Path) -> Iterator[Building]:
    made = Building(folder)
    try:
        yield made
    finally:
        made.close()
