"""The data plane's door: which rollout is meant, who is calling, which protocol answers.

A rollout is addressed in one of two ways:

    headers   X-Amzn-SageMaker-Job-Arn, X-Amzn-SageMaker-Trajectory-Id (or the body's JobArn,
              TrajectoryId), with Authorization: Bearer <an access key, the sagemaker SDK's token
              or the rollout's secret>, or signed as AWS's clients sign
    base URL  {server}/r/{rollout id}.{rollout secret}/... for frameworks that cannot set headers;
              a key that the framework insists on sending is ignored

or not at all: a run of an uploaded evaluator has the base URL {server}/e/{run id}.{run secret}/...
for all of its rollouts, and `wire.runs` says which of them is meant.

A chat completion that addresses no rollout is answered by the model that it names: a registered
one as "group/version", "group" for the newest version, a package id, a model package's ARN or
"accounts/{account}/models/{group}"; a base model by its name or "accounts/fireworks/models/{name}";
each by "accounts/{account}/deployments/{id}" where it was deployed so.
One at a path with tags (`fireworks.tracing_codec`) is recorded with them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from turnwise import errors
from turnwise.access import sigv4
from turnwise.control.models.served import ServedModels
from turnwise.control.traces import Traces
from turnwise.domain.access import Account, Principal
from turnwise.domain.rollout import Rollout
from turnwise.gateway.chat import ChatRequest
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.gateway import Gateway
from turnwise.gateway.serving import Serving
from turnwise.ports import ServedModel
from turnwise.wire.asgi import ClientGone, HttpCall, Receive, Scope, Send
from turnwise.wire.aws import runtime as aws
from turnwise.wire.aws import runtime_codec as aws_codec
from turnwise.wire.aws.arns import JobArn, ModelPackageArn
from turnwise.wire.aws.signed import signed_request
from turnwise.wire.data_events import NAMES, DataEvents
from turnwise.wire.fireworks import tracing
from turnwise.wire.fireworks.deployments import FindDeployed
from turnwise.wire.fireworks.tracing_codec import (
    DeploymentName,
    GatewayPath,
    ModelName,
    plain_name,
)
from turnwise.wire.openai import routes as openai
from turnwise.wire.runs import PREFIX, RunDoor

log = logging.getLogger(__name__)

# The names of today, and those of the first SDK (which also numbered calls, in X-Span-Id).
JOB_ARN = ("x-amzn-sagemaker-job-arn", "x-rft-job-arn")
TRAJECTORY_ID = ("x-amzn-sagemaker-trajectory-id", "x-trajectory-id")

CHAT = "/v1/chat/completions"

_HOW_TO_ADDRESS = (
    "send X-Amzn-SageMaker-Job-Arn and X-Amzn-SageMaker-Trajectory-Id, "
    "or use the base URL {server}/r/{rollout id}.{rollout secret}/v1"
)

_HOW_TO_NAME = "GET /v1/models lists them; to ask for the model of a rollout, " + _HOW_TO_ADDRESS


@dataclass(frozen=True, slots=True)
class Address:
    """What a path says: the operation, and the rollout with its secret if the path names it.

    `traced` is there for the tracing gateway's paths, of calls outside this server's rollouts.
    """

    path: str
    rollout_id: str = ""
    secret: str = ""
    traced: GatewayPath | None = None

    @classmethod
    def of(cls, path: str) -> Address:
        """Split a path.

        >>> Address.of("/r/rol_a.xyz/v1/models")
        Address(path='/v1/models', rollout_id='rol_a', secret='xyz', traced=None)
        >>> Address.of("/inference/v1/models").path
        '/v1/models'
        """
        if not path.startswith("/r/"):
            traced = GatewayPath.of(path)
            return cls(path) if traced is None else cls(f"/v1{traced.operation}", traced=traced)
        name, _, rest = path[3:].partition("/")
        rollout_id, _, secret = name.partition(".")
        return cls(f"/{rest}", rollout_id, secret)


class Verifying(Protocol):
    """Verifies callers that are not a rollout's own. `access.callers` does."""

    async def bearer(self, bearer: str) -> Principal:
        """By an access key or the sagemaker SDK's token. Raises `Unauthenticated`."""
        ...

    async def signed(self, request: sigv4.SignedRequest) -> Principal:
        """By the request's signature. Raises `Unauthenticated`."""
        ...


Handler = Callable[[HttpCall, Address], Awaitable[None]]
Fail = Callable[[HttpCall, Exception], Awaitable[None]]


class DataPlane:
    """An ASGI app for the hot paths; `owns` says which requests are its own."""

    def __init__(
        self,
        gateway: Gateway,
        serving: Serving,
        models: ServedModels,
        callers: Verifying,
        account_number: Callable[[str], Awaitable[str]],
        account: Callable[[str], Awaitable[Account]],
        traces: Traces,
        events: DataEvents | None = None,
        runs: RunDoor | None = None,
        deployed: FindDeployed | None = None,
    ) -> None:
        """`callers` verifies who calls; `account_number` gives an account's 12 digits at once.

        `events`, where given, tells the audit trail of calls that a trail selects; `runs` answers
        evaluators' runs; `deployed` finds the models of deployments.
        """
        self._gateway = gateway
        self._serving = serving
        self._models = models
        self._callers = callers
        self._account_number = account_number
        self._account = account
        self._traces = traces
        self._events = events
        self._runs = runs
        self._deployed = deployed
        self._routes: Mapping[str, tuple[str, Handler, Fail]] = {
            CHAT: ("POST", self._chat, openai.fail),
            "/v1/models": ("GET", self._list_models, openai.fail),
            "/sample": ("POST", self._sample, aws.fail),
            "/sample-with-response-stream": ("POST", self._sample_streamed, aws.fail),
            "/complete-rollout": ("POST", self._complete_rollout, aws.fail),
            "/update-reward": ("POST", self._update_reward, aws.fail),
            "/CompleteTrajectory": ("POST", self._complete_rollout, aws.fail),
            "/UpdateReward": ("POST", self._update_reward, aws.fail),
        }

    def owns(self, path: str) -> bool:
        """Whether requests to this path are answered here."""
        return path.startswith(("/r/", PREFIX)) or Address.of(path).path in self._routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        http = HttpCall(scope, receive, send)
        address = Address.of(scope["path"])
        method, handler, fail = self._routes.get(address.path) or self._route_of_run(address)
        if method and http.method != method:
            await http.answer(405, b'{"message":"method not allowed"}', more=[("allow", method)])
            return
        ended: Exception | None = None
        try:
            await handler(http, address)
        except ClientGone as error:
            ended = error
            log.debug("the client of %s has gone", address.path)
        except errors.TurnwiseError as error:
            ended = error
            await fail(http, error)
        except Exception as error:
            ended = error
            log.exception("%s failed", address.path)
            await fail(http, error)
        if self._events is not None and self._events.is_on:
            await self._record(self._events, http, address, ended)

    def _route_of_run(self, address: Address) -> tuple[str, Handler, Fail]:
        """The method is the run's door's to judge: one path may have several."""
        if self._runs is None or not address.path.startswith(PREFIX):
            return "", _no_route, openai.fail
        door = self._runs

        async def answer(http: HttpCall, address: Address) -> None:
            await door(http, address.path)

        async def fail(http: HttpCall, error: Exception) -> None:
            await door.fail(http, error, address.path)

        return "", answer, fail

    async def _record(
        self, events: DataEvents, http: HttpCall, address: Address, ended: Exception | None
    ) -> None:
        """Tell the audit trail of a call that is answered, if it is one about a rollout."""
        named_arn, rollout_id = _named(http, address)
        is_about_one = http.rollout is not None or rollout_id or named_arn
        path = CHAT if address.path.startswith(PREFIX) else address.path
        if http.caller is None or not is_about_one or path not in NAMES:
            return
        try:
            await events.saw(
                NAMES[path],
                http.caller,
                http.rollout,
                ended,
                named_arn=named_arn,
                source_ip=http.client_ip,
                user_agent=http.header("user-agent"),
            )
        except errors.TurnwiseError as error:
            log.error("a call of %s is not in the audit trail: %s", address.path, error)

    # ── operations ────────────────────────────────────────────────────────────────────────────

    async def _chat(self, http: HttpCall, address: Address) -> None:
        if any(_named(http, address)):
            await self._chat_in_rollout(http, address, openai.retry_count(http))
            return
        principal = await self._key_holder(http)
        record = None
        if address.traced is not None and not address.traced.is_plain:
            record = await tracing.recorder(self._traces, principal, address.traced, http)

        async def ask(request: ChatRequest, _: bytes) -> Exchange:
            model = await self._model(principal, request.model)
            return self._serving.ask(principal.account_id, model, request, record)

        await openai.chat(ask, http)

    async def _chat_in_rollout(
        self, http: HttpCall, address: Address, retry_count: int, *, stream: bool | None = None
    ) -> None:
        principal, rollout = await self._caller_of_rollout(http, address)

        async def ask(request: ChatRequest, body: bytes) -> Exchange:
            return await self._gateway.ask(
                principal, rollout.rollout_id, request, body=body, retry_count=retry_count
            )

        await openai.chat(ask, http, stream=stream)

    async def _list_models(self, http: HttpCall, address: Address) -> None:
        names: Sequence[str]
        if any(_named(http, address)):
            principal, rollout = await self._caller_of_rollout(http, address)
            names = self._gateway.models(principal, rollout.job_id)
        else:
            names = await self._models.names(await self._key_holder(http))
        await openai.models(names, http)

    async def _sample(self, http: HttpCall, address: Address) -> None:
        await self._sampled(http, address, stream=False)

    async def _sample_streamed(self, http: HttpCall, address: Address) -> None:
        await self._sampled(http, address, stream=True)

    async def _sampled(self, http: HttpCall, address: Address, *, stream: bool) -> None:
        count = max(aws.retry_count(http), openai.retry_count(http))
        await self._chat_in_rollout(http, address, count, stream=stream)

    async def _complete_rollout(self, http: HttpCall, address: Address) -> None:
        report = aws_codec.decode_completed(await http.body(), *_named(http, address))
        principal = await self._reporter(http, address, report)
        await aws.complete_rollout(self._gateway, principal, report, http)

    async def _update_reward(self, http: HttpCall, address: Address) -> None:
        report = aws_codec.decode_rewarded(await http.body(), *_named(http, address))
        principal = await self._reporter(http, address, report)
        await aws.update_reward(self._gateway, principal, report, http)

    async def _model(self, principal: Principal, model: str) -> ServedModel:
        """The model of that name or ARN; other accounts' do not exist."""
        try:
            if model.startswith("arn:"):
                arn = ModelPackageArn.parse(model)
                is_ours = arn.number == await self._account_number(principal.account_id)
                name = f"{arn.group}/{arn.version}" if is_ours else ""
                return await self._models.package(principal, name)
            if (deployment := DeploymentName.of(model)) is not None:
                full: ModelName | None = await self._deployed_as(principal, deployment)
            else:
                full = ModelName.of(model)
            if full is not None:
                return await self._model_by_full_name(principal, full)
            return await self._models.model(principal, plain_name(model))
        except errors.NotFound:
            raise errors.NotFound("model", model, remedy=_HOW_TO_NAME) from None

    async def _model_by_full_name(self, principal: Principal, full: ModelName) -> ServedModel:
        if full.is_base:
            return await self._models.base(principal, full.name)
        is_ours = await self._is_own(principal, full.account)
        return await self._models.package(principal, full.name if is_ours else "")

    async def _deployed_as(self, principal: Principal, name: DeploymentName) -> ModelName | None:
        if self._deployed is None or not await self._is_own(principal, name.account):
            raise errors.NotFound("deployment", name.id)
        return ModelName.of(await self._deployed(principal.account_id, name.id))

    async def _is_own(self, principal: Principal, named: str) -> bool:
        account = await self._account(principal.account_id)
        return named in (account.slug, account.account_id)

    # ── who is calling about which rollout ────────────────────────────────────────────────────

    async def _caller_of_rollout(
        self, http: HttpCall, address: Address
    ) -> tuple[Principal, Rollout]:
        job_arn, rollout_id = _named(http, address)
        if not rollout_id:
            raise errors.InvalidInput(
                "X-Amzn-SageMaker-Trajectory-Id",
                rollout_id,
                "names no rollout",
                remedy=_HOW_TO_ADDRESS,
            )
        return await self._caller(http, address, rollout_id, job_arn)

    async def _reporter(
        self, http: HttpCall, address: Address, report: aws_codec.Report
    ) -> Principal:
        if not report.trajectory_id:
            raise errors.InvalidInput("TrajectoryId", "", "is required")
        principal, _ = await self._caller(http, address, report.trajectory_id, report.job_arn)
        return principal

    async def _caller(
        self, http: HttpCall, address: Address, rollout_id: str, job_arn: str
    ) -> tuple[Principal, Rollout]:
        arn = JobArn.parse(job_arn) if job_arn else None
        if address.secret:
            principal = await self._gateway.agent(address.rollout_id, address.secret)
            if principal is None:
                raise errors.Unauthenticated("the secret in the path is not this rollout's")
        else:
            principal = await self._caller_by_key(http, rollout_id)
        http.caller = principal
        if arn is not None and arn.number != await self._account_number(principal.account_id):
            raise errors.Denied(
                f"this key is not of account {arn.number}, which the job's ARN names"
            )
        rollout = await self._gateway.rollout(rollout_id)
        if rollout.account_id != principal.account_id:
            raise errors.NotFound("trajectory", rollout_id)
        http.rollout = rollout
        if arn is not None:
            await self._check_job(rollout, arn)
        return principal, rollout

    async def _caller_by_key(self, http: HttpCall, rollout_id: str) -> Principal:
        """The caller by the rollout's own secret or by an access key.

        Who has neither is not told whether the rollout exists.
        """
        if _is_signed(http):
            return await self._key_holder(http)
        try:
            principal = await self._gateway.agent(rollout_id, _bearer(http))
        except errors.NotFound:
            await self._key_holder(http)
            raise
        return principal or await self._key_holder(http)

    async def _key_holder(self, http: HttpCall) -> Principal:
        """The caller by an access key: presented, signed with, or in a token."""
        if _is_signed(http):
            return await self._callers.signed(await signed_request(http))
        return await self._callers.bearer(_bearer(http))

    async def _check_job(self, rollout: Rollout, arn: JobArn) -> None:
        """Raise unless the ARN names the rollout's job. Its region is not ours to judge."""
        its = JobArn.of(await self._gateway.job_of(rollout), arn.region, arn.number)
        if arn != its:
            raise errors.NotFound("trajectory", rollout.rollout_id, remedy=f"not in job {arn.name}")


def _named(http: HttpCall, address: Address) -> tuple[str, str]:
    """Job ARN and rollout id by header; a rollout in the path goes before."""
    rollout_id = address.rollout_id or _first(http, TRAJECTORY_ID)
    return _first(http, JOB_ARN), rollout_id


def _first(http: HttpCall, names: tuple[str, ...]) -> str:
    """The first of these headers that is there."""
    return next((value for name in names if (value := http.header(name))), "")


def _is_signed(http: HttpCall) -> bool:
    return http.header("authorization").startswith(sigv4.ALGORITHM)


def _bearer(http: HttpCall) -> str:
    scheme, _, bearer = http.header("authorization").partition(" ")
    if scheme.lower() != "bearer" or not bearer:
        raise errors.Unauthenticated(
            "no key: send 'Authorization: Bearer <key>' with an access key or the rollout's secret"
        )
    return bearer.strip()


async def _no_route(http: HttpCall, address: Address) -> None:
    raise errors.NotFound("route", address.path)
