"""What uploaded evaluators' runs ask for: one base URL for all rollouts of a run.

    {server}/e/{run id}.{run secret}[/litellm-gateway][/v1][/rollout_id/{id}/.../...]{operation}

    /chat/completions       a turn of one of the run's rollouts
    /logs, /status, /traces/pointwise
                            what RemoteRolloutProcessor and its server ask the tracing gateway for

The pairs in the path are eval-protocol's: RemoteRolloutProcessor adds the ids of its rollout, run
and row. Which of our rollouts a call is of, `evaluators.joining` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.evaluators.joining import Place
from turnwise.evaluators.runs import PREFIX, Run, Runs
from turnwise.gateway.chat import ChatRequest, Reply
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.gateway import Gateway
from turnwise.wire.asgi import ClientGone, HttpCall
from turnwise.wire.fireworks import tracing
from turnwise.wire.fireworks.tracing_codec import CHAT, LOGS, STATUS, TRACES, GatewayPath
from turnwise.wire.openai import routes as openai
from turnwise.wire.run_traces import RunTraces

__all__ = ["PREFIX", "RunAddress", "RunDoor"]

Answer = Callable[[Run, HttpCall, "RunAddress"], Awaitable[None]]

_ACTIONS = frozenset({Action.SAMPLE, Action.REPORT})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAddress:
    """What a path of an evaluator's run says; `rest` is what comes behind the run."""

    run_id: str
    secret: str
    rest: GatewayPath

    @classmethod
    def of(cls, path: str) -> RunAddress:
        """Read a path. Raises `NotFound` for an operation that a run has no use for.

        >>> RunAddress.of("/e/run_a.xyz/rollout_id/odd-9/row_id/1/chat/completions").their_id
        'odd-9'
        """
        name, slash, rest = path.removeprefix(PREFIX).partition("/")
        run_id, _, secret = name.partition(".")
        found = GatewayPath.of(slash + rest)
        if found is None or found.operation not in (CHAT, LOGS, STATUS, TRACES):
            raise errors.NotFound(
                "route", slash + rest, remedy="a run asks for /v1/chat/completions"
            )
        return cls(run_id=run_id, secret=secret, rest=found)

    @property
    def their_id(self) -> str:
        """Eval-protocol's id of the rollout; "" where the path has none."""
        named = (tag.partition(":") for tag in self.rest.tags)
        return next((value for name, _, value in named if name == "rollout_id"), "")


class RunDoor:
    """Answers evaluators' runs."""

    def __init__(self, gateway: Gateway, runs: Runs, traces: RunTraces) -> None:
        self._gateway = gateway
        self._runs = runs
        self._traces = traces
        self._routes: Mapping[str, Mapping[str, Answer]] = {
            CHAT: {"POST": self._chat},
            LOGS: {"GET": self._list_logs, "POST": self._keep_log},
            STATUS: {"GET": self._status},
            TRACES: {"GET": self._list_calls},
        }

    async def __call__(self, http: HttpCall, path: str) -> None:
        """Answer a request. Raises as `Gateway.ask`, `Joining.place` and `Traces` do."""
        address = RunAddress.of(path)
        by_method = self._routes[address.rest.operation]
        if http.method not in by_method:
            allow = ("allow", ", ".join(by_method))
            await http.answer(405, b'{"message":"method not allowed"}', more=[allow])
            return
        run = self._runs.find(address.run_id, address.secret)
        await by_method[http.method](run, http, address)

    @staticmethod
    async def fail(http: HttpCall, error: Exception, path: str) -> None:
        """Answer with an error, in the shape of the operation that it is of."""
        is_traced = path.endswith((LOGS, STATUS, TRACES))
        await (tracing.fail if is_traced else openai.fail)(http, error)

    async def _chat(self, run: Run, http: HttpCall, address: RunAddress) -> None:
        """One turn of one of the run's rollouts."""
        address.rest.check()
        call = _Call(run, address, openai.retry_count(http))

        async def ask(request: ChatRequest, body: bytes) -> Exchange:
            place = call.begin(request, body)
            principal = _agent(run.account_id, place.rollout_id)
            http.caller = principal
            http.rollout = await self._gateway.rollout(place.rollout_id)
            return await self._gateway.ask(
                principal,
                place.rollout_id,
                # The model is what the rollout is of, whatever name it has in the evaluator.
                replace(request, model="default"),
                body=body,
                retry_count=call.retry_count,
            )

        try:
            await openai.chat(ask, http, seen=call.seen)
        except ClientGone:
            call.lost()
            raise
        except Exception:
            call.failed()
            raise

    async def _keep_log(self, run: Run, http: HttpCall, address: RunAddress) -> None:
        body = await http.body(tracing.MAX_LOG_BYTES)
        await http.answer(200, await self._traces.keep_log(run, body))

    async def _list_logs(self, run: Run, http: HttpCall, address: RunAddress) -> None:
        await http.answer(200, await self._traces.logs(run, http.query))

    async def _status(self, run: Run, http: HttpCall, address: RunAddress) -> None:
        await http.answer(200, await self._traces.status(run, http.query))

    async def _list_calls(self, run: Run, http: HttpCall, address: RunAddress) -> None:
        project_id = address.rest.project_id
        await http.answer(200, await self._traces.calls(run, http.query, project_id=project_id))


class _Call:
    """A call while it runs, and what its run's joining is told of it."""

    def __init__(self, run: Run, address: RunAddress, retry_count: int) -> None:
        self.retry_count = retry_count
        self._run = run
        self._joining = run.joining
        self._address = address
        self._place: Place | None = None
        self._sha256 = ""
        self._is_seen = False

    def begin(self, request: ChatRequest, body: bytes) -> Place:
        """Whose it is."""
        self._sha256 = hashlib.sha256(body).hexdigest()
        self._place = self._joining.place(
            request.messages,
            their_id=self._address.their_id,
            request=self._sha256,
            is_retry=self.retry_count > 0,
        )
        if self._address.their_id:
            self._run.tags[self._address.their_id] = self._address.rest.tags
        return self._place

    def seen(self, reply: Reply) -> None:
        """The reply is about to go out."""
        assert self._place is not None  # a reply comes after its request
        self._is_seen = True
        self._joining.said(self._place, reply.turn_id, reply.message)

    def lost(self) -> None:
        """The client has gone."""
        if self._place is not None:
            self._joining.lost(self._place, self._sha256)

    def failed(self) -> None:
        """It was refused, or came to nothing."""
        if self._place is not None and not self._is_seen:
            self._joining.failed(self._place)


def _agent(account_id: str, rollout_id: str) -> Principal:
    return Principal(
        account_id=account_id,
        actions=_ACTIONS,
        rollout_id=rollout_id,
        name=f"rollout {rollout_id}",
    )
