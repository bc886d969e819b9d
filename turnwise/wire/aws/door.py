"""The AWS door: which service a signed request is for, who signed it, and the service's answer.

A request belongs here when it is signed for one of the door's services, or is an unsigned call of
one of their operations, which is refused in AWS's words. The name of the service is in the scope of
the signature, as `.../us-west-2/sagemaker/aws4_request`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote

from turnwise import errors
from turnwise.access import sigv2, sigv4
from turnwise.domain.access import Account, Principal
from turnwise.wire.asgi import (
    MAX_BODY_BYTES,
    MAX_MANAGING_BYTES,
    ClientGone,
    HttpCall,
    Receive,
    Scope,
    Send,
)
from turnwise.wire.aws import faults
from turnwise.wire.aws.protocols import Reply, Request, WireFormat, unknown_operation, wire_format
from turnwise.wire.aws.service import AwsError, AwsService, Call, Json
from turnwise.wire.aws.signed import signed_request

log = logging.getLogger(__name__)

_READ_ONLY = re.compile(
    r"(Describe|List|Get|Head|Lookup|Filter|Search|Query|Simulate|BatchGet|BatchDescribe)"
)

#: Services whose bodies are the user's own data.
_CARRYING = frozenset({"s3", "lambda", "bedrock-agentcore"})

#: Services without regions; clients sign for this one, or for their own at another endpoint.
_GLOBAL = {"iam": "us-east-1"}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a call, for the audit trail. `error` is its code, "" if it went well."""

    service: str
    operation: str = ""
    parameters: Json = field(default_factory=dict)
    result: Json = field(default_factory=dict)
    error: str = ""
    message: str = ""

    @property
    def is_read_only(self) -> bool:
        """Whether the operation changes nothing, by its name."""
        return _READ_ONLY.match(self.operation) is not None


class Answering(Protocol):
    """A service as the door sees it. `Modelled` and S3's are two."""

    @property
    def name(self) -> str:
        """Its name in the scope of signatures."""
        ...

    def open(self) -> None:
        """Read what answers need, before the first. Blocks."""
        ...

    async def answer(self, call: Call, request: Request, outcome: Outcome) -> Reply:
        """Answer a verified call and say in `outcome` what it was. Raises nothing."""
        ...

    def fault(self, error: Exception, request_id: str) -> Reply:
        """An error in the service's own shape."""
        ...


_ALGORITHM = sigv4.ALGORITHM.encode()
_SCOPE = re.compile(r"/([a-z0-9-]+)/aws4_request")
AnySignature = sigv4.Signature | sigv2.PresignedUrl
Verify = Callable[[sigv4.SignedRequest, AnySignature], Awaitable[Principal]]
Observe = Callable[[Call, Outcome], Awaitable[None]]


class Modelled:
    """A service that botocore's model describes."""

    def __init__(self, service: AwsService, *, signing_name: str = "") -> None:
        self._service = service
        self._signing_name = signing_name or service.name

    @property
    def name(self) -> str:
        """Its name in the scope of signatures."""
        return self._signing_name

    def open(self) -> None:
        """Load the model. Blocks."""
        _ = self._service.model

    @property
    def service(self) -> AwsService:
        """What it answers by."""
        return self._service

    @property
    def target_prefix(self) -> str:
        """What X-Amz-Target begins with; "" where it is not used."""
        return str(self._service.model.metadata.get("targetPrefix") or "")

    def has(self, request: Request) -> bool:
        """Whether the model has an operation that this request calls."""
        try:
            self._format.operation(self._service.model, request)
        except AwsError:
            return False
        return True

    async def answer(self, call: Call, request: Request, outcome: Outcome) -> Reply:
        """Decode, call, encode."""
        try:
            operation = self._format.operation(self._service.model, request)
            outcome.operation = operation.name
            handler = self._service.handlers.get(operation.name)
            if handler is None:
                raise unknown_operation(operation.name)
            outcome.parameters = self._format.read(operation, request)
            outcome.result = await handler(call, outcome.parameters)
            return self._format.write(operation, outcome.result, call.request_id)
        except Exception as error:
            if not isinstance(error, errors.TurnwiseError | AwsError):
                log.exception("%s %s failed", self.name, outcome.operation)
            status, outcome.error, outcome.message = faults.describe(error, self._service)
            return self._format.fault(status, outcome.error, outcome.message, call.request_id)

    def fault(self, error: Exception, request_id: str) -> Reply:
        """An error in the service's own shape."""
        return self._format.fault(*faults.describe(error, self._service), request_id)

    @property
    def _format(self) -> WireFormat:
        return wire_format(self._service.model)


class Planes:
    """Several models of one signing name, such as a control plane and a data plane."""

    def __init__(self, *planes: Modelled) -> None:
        self._planes = planes

    @property
    def planes(self) -> Sequence[Modelled]:
        """The models."""
        return self._planes

    @property
    def name(self) -> str:
        """Their name in the scope of signatures."""
        return self._planes[0].name

    def open(self) -> None:
        """Load the models. Blocks."""
        for plane in self._planes:
            plane.open()

    async def answer(self, call: Call, request: Request, outcome: Outcome) -> Reply:
        """By the first model that has the operation."""
        plane = next((each for each in self._planes if each.has(request)), self._planes[0])
        return await plane.answer(call, request, outcome)

    def fault(self, error: Exception, request_id: str) -> Reply:
        """An error in the services' own shape."""
        return self._planes[0].fault(error, request_id)


class AwsDoor:
    """An ASGI app for all AWS services but the job runtime; `owns` says which requests are its."""

    def __init__(
        self,
        services: Sequence[Answering],
        *,
        verify: Verify,
        account: Callable[[str], Awaitable[Account]],
        region: str,
        observe: Observe,
    ) -> None:
        """`account` finds an account by its id; `observe` is told every call with its outcome."""
        self._services: Mapping[str, Answering] = {service.name: service for service in services}
        self._verify = verify
        self._account = account
        self._region = region
        self._observe = observe
        self._opened: set[str] = set()

    def owns(self, scope: Scope) -> bool:
        """Whether a request that no other door has claimed by its path is answered here."""
        headers = dict(scope["headers"])
        return (
            headers.get(b"authorization", b"").startswith(_ALGORITHM)
            or b"X-Amz-Algorithm=" in scope["query_string"]
            or b"x-amz-target" in headers
            or (scope["method"] == "POST" and scope["path"] == "/")
        )

    def signed_for(self, scope: Scope) -> str:
        """The service whose signature a request bears; "" if it bears none. It is not verified.

        Every request of the data plane comes by here first.
        """
        authorization: bytes = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
        query: bytes = scope["query_string"]
        if not query and not authorization.startswith(_ALGORITHM):
            return ""
        return _signed_for(authorization.decode("latin-1"), query.decode("latin-1"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        http = HttpCall(scope, receive, send)
        try:
            is_data = self.signed_for(scope) in _CARRYING
            body = await http.body(MAX_BODY_BYTES if is_data else MAX_MANAGING_BYTES)
        except ClientGone:
            return
        except errors.InvalidInput as error:
            await self._open(http)
            reply = self._unsigned(http).fault(error, str(uuid.uuid4()))
        else:
            reply = await self._answer(http, body)
        await _send(http, reply)

    async def _answer(self, http: HttpCall, body: bytes) -> Reply:
        request_id = str(uuid.uuid4())
        request = Request(
            method=http.method,
            path=http.raw_path,
            query=http.query,
            headers=http.headers,
            body=body,
        )
        await self._open(http)
        service = self._unsigned(http)
        try:
            signed = await signed_request(http)
            signature: AnySignature | None = sigv4.Signature.of(signed)
            signature = signature or sigv2.PresignedUrl.of(signed, self._region)
            if signature is None:
                raise AwsError(
                    "MissingAuthenticationToken",
                    "the request is not signed; `turnwise keys create` makes an access key",
                    status=403,
                )
            service = self._scoped(signature)
            principal = await self._verify(signed, signature)
            call = Call(
                principal=principal,
                account=await self._account(principal.account_id),
                region=self._region,
                request_id=request_id,
                access_key_id=signature.access_key_id,
                source_ip=http.client_ip,
                user_agent=http.header("user-agent"),
            )
        except (errors.TurnwiseError, AwsError) as error:
            _log_refusal(http, request, request_id, error)
            return service.fault(error, request_id)
        except Exception as error:
            log.exception("request %s could not be verified", request_id)
            return service.fault(error, request_id)
        outcome = Outcome(service=service.name)
        reply = await service.answer(call, request, outcome)
        try:
            await self._observe(call, outcome)
        except Exception as error:
            is_ours = isinstance(error, errors.TurnwiseError)
            log.error(
                "%s of %s is not in the audit trail yet: %s",
                outcome.operation,
                call,
                error,
                exc_info=not is_ours,
            )
            if not outcome.error and not outcome.is_read_only:
                return service.fault(_unrecorded(error), request_id)
        return reply

    async def _open(self, http: HttpCall) -> None:
        """Have the models that an answer needs loaded: reading one would stop every request."""
        name = _signed_for(http.header("authorization"), http.query)
        needed = {name} if name in self._services else set(self._services)
        for each in needed - self._opened:
            await asyncio.to_thread(self._services[each].open)
            self._opened.add(each)

    def _scoped(self, signature: AnySignature) -> Answering:
        """The service that a signature is for."""
        service = self._services.get(signature.service)
        if service is None:
            raise unknown_operation(f"of service {signature.service}")
        if signature.region not in (self._region, _GLOBAL.get(signature.service)):
            raise errors.BadSignature(
                f"the signature is for region {signature.region!r}; this server is in "
                f"{self._region!r}: set AWS_REGION and AWS_DEFAULT_REGION to it"
            )
        return service

    def _unsigned(self, http: HttpCall) -> Answering:
        """Whose words an error is in before the signature has been read."""
        name = _signed_for(http.header("authorization"), http.query)
        if name in self._services:
            return self._services[name]
        target = http.header("x-amz-target")
        for service in self._services.values():
            prefix = getattr(service, "target_prefix", "")
            if prefix and target.startswith(prefix + "."):
                return service
        is_form = http.header("content-type").startswith("application/x-www-form-urlencoded")
        fallback = "sts" if is_form and "sts" in self._services else "sagemaker"
        return self._services[fallback]


def _signed_for(authorization: str, query: str) -> str:
    is_signed = authorization.startswith(sigv4.ALGORITHM)
    found = _SCOPE.search(authorization if is_signed else unquote(query))
    if found is None and not is_signed and sigv2.MARK + "=" in query:
        return "s3"
    return found[1] if found else ""


def _log_refusal(http: HttpCall, request: Request, request_id: str, error: Exception) -> None:
    """An access key's id is no secret, so whoever knows one could fill its account's audit trail.

    So what could not be verified is in the server's own log alone.
    """
    authorization = request.headers.get("authorization", "")
    claimed = re.search(r"Credential=([A-Za-z0-9]{1,64})/", authorization)
    log.warning(
        "refused %s %.200r from %s, access key %s, request %s: %s",
        request.method,
        request.headers.get("x-amz-target") or request.path,
        http.client_ip or "an unknown address",
        claimed[1] if claimed else "none",
        request_id,
        error,
    )


def _unrecorded(error: Exception) -> errors.Unavailable:
    return errors.Unavailable(
        f"the call was carried out, but its audit record could not be kept yet: {error}"
    )


async def _send(http: HttpCall, reply: Reply) -> None:
    if reply.pieces is None:
        await http.answer(reply.status, reply.body, media_type=reply.media_type, more=reply.headers)
        return
    async with contextlib.aclosing(reply.pieces) as pieces:
        with contextlib.suppress(ClientGone):
            async with http.while_connected():
                await http.answer_in_pieces(
                    reply.status, pieces, media_type=reply.media_type, more=reply.headers
                )
