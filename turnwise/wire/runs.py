"""Model calls of uploaded evaluators: one base URL for all rollouts of a run.

    {server}/e/{run id}.{run secret}[/v1][/rollout_id/{id}/.../...][/v1]/chat/completions

The pairs in the path are eval-protocol's: RemoteRolloutProcessor adds the ids of its rollout, run
and row. Which of our rollouts a call is of, `evaluators.joining` says.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.evaluators.joining import Place
from turnwise.evaluators.runs import PREFIX, Run, Runs
from turnwise.gateway.chat import ChatRequest, Reply
from turnwise.gateway.exchange import Exchange
from turnwise.gateway.gateway import Gateway
from turnwise.wire.asgi import ClientGone, HttpCall
from turnwise.wire.openai import routes as openai

__all__ = ["PREFIX", "RunAddress", "RunDoor"]

#: What pairs a path may hold; of these only the first says anything to us.
_TAGS = ("rollout_id", "invocation_id", "experiment_id", "run_id", "row_id", "insertion_id")

_ACTIONS = frozenset({Action.SAMPLE, Action.REPORT})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAddress:
    """What a path of an evaluator's run says; `their_id` is eval-protocol's id of the rollout."""

    run_id: str
    secret: str
    their_id: str = ""

    @classmethod
    def of(cls, path: str) -> RunAddress:
        """Read a path. Raises `NotFound` for another operation than a chat completion.

        >>> RunAddress.of("/e/run_a.xyz/rollout_id/odd-9/row_id/1/chat/completions")
        RunAddress(run_id='run_a', secret='xyz', their_id='odd-9')
        """
        name, *parts = path.removeprefix(PREFIX).split("/")
        run_id, _, secret = name.partition(".")
        tags: dict[str, str] = {}
        while parts and parts != ["chat", "completions"]:
            if parts[0] == "v1":
                parts = parts[1:]
            elif parts[0] in _TAGS and len(parts) > 1 and parts[1]:
                tags[parts[0]], parts = parts[1], parts[2:]
            else:
                raise errors.NotFound(
                    "route", "/" + "/".join(parts), remedy="a run asks for /v1/chat/completions"
                )
        if not parts:
            raise errors.NotFound("route", "/", remedy="a run asks for /v1/chat/completions")
        return cls(run_id=run_id, secret=secret, their_id=tags.get("rollout_id", ""))


class RunDoor:
    """Answers the model calls of evaluators' runs."""

    def __init__(self, gateway: Gateway, runs: Runs) -> None:
        self._gateway = gateway
        self._runs = runs

    async def chat(self, http: HttpCall, path: str) -> None:
        """One turn of one of the run's rollouts. Raises as `Gateway.ask` and `Joining.place`."""
        address = RunAddress.of(path)
        run = self._runs.find(address.run_id, address.secret)
        call = _Call(run, address.their_id, openai.retry_count(http))

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


class _Call:
    """A call while it runs, and what its run's joining is told of it."""

    def __init__(self, run: Run, their_id: str, retry_count: int) -> None:
        self.retry_count = retry_count
        self._joining = run.joining
        self._their_id = their_id
        self._place: Place | None = None
        self._sha256 = ""
        self._is_seen = False

    def begin(self, request: ChatRequest, body: bytes) -> Place:
        """Whose it is."""
        self._sha256 = hashlib.sha256(body).hexdigest()
        self._place = self._joining.place(
            request.messages,
            their_id=self._their_id,
            request=self._sha256,
            is_retry=self.retry_count > 0,
        )
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
