"""The tracing gateway of remote rollouts: log entries, how a rollout has ended, its model calls.

    POST /logs                  an entry, with tags and perhaps a status
    GET  /logs                  entries by tags
    GET  /status?rollout_id=ID  the newest status that ends the rollout
    GET  /traces/pointwise      model calls by tags

Each below /v1, /litellm-gateway and /project_id/{any} too. The calls themselves are chat
completions at a path with tags, which the data plane answers and records with `recorder`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from turnwise import errors
from turnwise.control.traces import Traces, check_tags
from turnwise.domain.access import Principal
from turnwise.domain.traced import TracedCall
from turnwise.gateway.serving import Answered, Record
from turnwise.ports import Clock
from turnwise.wire.asgi import ClientGone, HttpCall, Receive, Scope, Send
from turnwise.wire.fireworks import tracing_codec as codec
from turnwise.wire.fireworks.tracing_codec import LOGS, STATUS, TRACES, GatewayPath

log = logging.getLogger(__name__)

#: Longest body of an entry.
MAX_LOG_BYTES = 256 * 1024
#: Longest body of a call that is recorded: a context of 1 M tokens is about 5 MB of text.
MAX_CALL_BYTES = 8 * 1024 * 1024

#: Verifies the holder of an access key. Raises `Unauthenticated`.
Verify = Callable[[str], Awaitable[Principal]]

Handler = Callable[[Principal, HttpCall, GatewayPath], Awaitable[bytes]]


async def recorder(
    traces: Traces, principal: Principal, path: GatewayPath, http: HttpCall
) -> Record:
    """What records a call at this path before its reply leaves.

    Raises `InvalidInput` for a path, or a body, that is not to be answered.
    """
    path.check()
    check_tags(path.tags)
    await http.body(MAX_CALL_BYTES)

    async def record(answered: Answered) -> None:
        await traces.keep_call(principal, _traced(answered, principal.account_id, path.tags))

    return record


def _traced(answered: Answered, account_id: str, tags: tuple[str, ...]) -> TracedCall:
    request, reply = answered.request, answered.reply
    return TracedCall(
        account_id=account_id,
        call_id=reply.turn_id,
        tags=tags,
        at=reply.created_at,
        started_at=answered.started_at,
        model=request.model,
        messages=request.messages,
        tools=request.tools,
        reply=reply.message,
        finish_reason=reply.finish_reason,
        prompt=answered.prompt,
        completion=answered.completion,
        logprobs=answered.logprobs,
    )


class TracingDoor:
    """An ASGI app; `owns` says which requests are its own."""

    def __init__(self, traces: Traces, verify: Verify, clock: Clock) -> None:
        self._traces = traces
        self._verify = verify
        self._clock = clock
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            LOGS: {"POST": self._keep_log, "GET": self._list_logs},
            STATUS: {"GET": self._status},
            TRACES: {"GET": self._list_calls},
        }

    def owns(self, path: str) -> bool:
        """Whether requests to this path are answered here."""
        found = GatewayPath.of(path)
        return found is not None and found.operation in self._routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        http = HttpCall(scope, receive, send)
        path = GatewayPath.of(scope["path"])
        assert path is not None
        handlers = self._routes[path.operation]
        if http.method not in handlers:
            allow = ("allow", ", ".join(handlers))
            await http.answer(405, b'{"message":"method not allowed"}', more=[allow])
            return
        try:
            principal = await self._verify(_bearer(http))
            answer = await handlers[http.method](principal, http, path)
        except ClientGone:
            log.debug("the client of %s has gone", path.operation)
        except errors.TurnwiseError as error:
            await fail(http, error)
        except Exception as error:
            log.exception("%s failed", path.operation)
            await fail(http, error)
        else:
            await http.answer(200, answer)

    async def _keep_log(self, principal: Principal, http: HttpCall, path: GatewayPath) -> bytes:
        await self._traces.keep_log(principal, codec.decode_log(await http.body(MAX_LOG_BYTES)))
        return b"{}"

    async def _list_logs(self, principal: Principal, http: HttpCall, path: GatewayPath) -> bytes:
        query = codec.decode_logs_query(http.query, self._clock.now())
        return codec.encode_logs(await self._traces.logs(principal, query))

    async def _status(self, principal: Principal, http: HttpCall, path: GatewayPath) -> bytes:
        rollout_id = codec.decode_status_query(http.query)
        return codec.encode_status(rollout_id, await self._traces.ended(principal, rollout_id))

    async def _list_calls(self, principal: Principal, http: HttpCall, path: GatewayPath) -> bytes:
        query, with_payloads = codec.decode_traces_query(http.query, self._clock.now())
        calls = await self._traces.calls(principal, query)
        return codec.encode_traces(calls, project_id=path.project_id, with_payloads=with_payloads)


def _bearer(http: HttpCall) -> str:
    scheme, _, bearer = http.header("authorization").partition(" ")
    if scheme.lower() != "bearer" or not bearer:
        raise errors.Unauthenticated("no key: send 'Authorization: Bearer <access key>'")
    return bearer.strip()


async def fail(http: HttpCall, error: Exception) -> None:
    """Answer with an error."""
    status, body = codec.encode_fault(error)
    await http.answer(status, body)
