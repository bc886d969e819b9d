"""AWS's three request formats that are described by botocore's models: HTTP -> parameters -> HTTP.

    json        POST / with X-Amz-Target: <prefix>.<Operation>; JSON both ways (SageMaker, Logs ...)
    query       POST / with Action=<Operation>&...; XML back (STS, IAM)
    rest-json   a method and a path per operation; JSON bodies (Lambda, AgentCore)

S3's is in `s3/`. Pure; https://smithy.io/2.0/aws/protocols/.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote
from xml.sax.saxutils import escape

from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StructureShape

from turnwise import errors
from turnwise.domain.times import iso
from turnwise.wire.aws import shapes
from turnwise.wire.aws.service import AwsError, Json

_JSON = "application/x-amz-json-1.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it arrived: path and query still percent-encoded, header names lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What goes back. A body too large to hold comes in `pieces`, its length in the headers."""

    status: int
    body: bytes
    media_type: str
    headers: tuple[tuple[str, str], ...] = ()
    pieces: AsyncGenerator[bytes, None] | None = None


class WireFormat(Protocol):
    """One of the formats."""

    def operation(self, model: ServiceModel, request: Request) -> OperationModel:
        """Which operation is called. Raises `AwsError` for one that AWS does not have."""
        ...

    def read(self, operation: OperationModel, request: Request) -> Json:
        """The parameters. Raises `InvalidInput`."""
        ...

    def write(self, operation: OperationModel, result: Json, request_id: str) -> Reply:
        """The answer to a call that went well."""
        ...

    def fault(self, status: int, code: str, message: str, request_id: str) -> Reply:
        """The answer to one that did not."""
        ...


def wire_format(model: ServiceModel) -> WireFormat:
    """The format of a service."""
    return _FORMATS[model.metadata["protocol"]]


# ── json ──────────────────────────────────────────────────────────────────────────────────────


class _JsonFormat:
    def operation(self, model: ServiceModel, request: Request) -> OperationModel:
        prefix, _, name = request.headers.get("x-amz-target", "").rpartition(".")
        if prefix != model.metadata["targetPrefix"] or name not in model.operation_names:
            raise unknown_operation(request.headers.get("x-amz-target", ""))
        return model.operation_model(name)

    def read(self, operation: OperationModel, request: Request) -> Json:
        return _read_body(operation, _parsed(request.body or b"{}"))

    def write(self, operation: OperationModel, result: Json, request_id: str) -> Reply:
        shape = operation.output_shape
        body = {} if shape is None else shapes.write(shape, result)
        return Reply(status=200, body=_dumped(body), media_type=_JSON, headers=_id(request_id))

    def fault(self, status: int, code: str, message: str, request_id: str) -> Reply:
        return _json_fault(status, code, message, request_id, _JSON)


def _read_body(operation: OperationModel, value: Any) -> Json:
    shape = operation.input_shape
    given: Json = {} if shape is None else shapes.read(shape, value)
    return given


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AwsError("SerializationException", f"the body is not JSON: {error}") from None


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _id(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("x-amzn-requestid", request_id),)


def _json_fault(status: int, code: str, message: str, request_id: str, media_type: str) -> Reply:
    # Both spellings: AWS's services use either, and clients look for one.
    body = _dumped({"__type": code, "message": message, "Message": message})
    headers = (*_id(request_id), ("x-amzn-errortype", code))
    return Reply(status=status, body=body, media_type=media_type, headers=headers)


# ── query ─────────────────────────────────────────────────────────────────────────────────────


class _QueryFormat:
    def operation(self, model: ServiceModel, request: Request) -> OperationModel:
        name = dict(_form(request)).get("Action", "")
        if name not in model.operation_names:
            raise unknown_operation(name)
        return model.operation_model(name)

    def read(self, operation: OperationModel, request: Request) -> Json:
        shape = operation.input_shape
        if shape is None:
            return {}
        value = _from_pairs(shape, dict(_form(request)), "")
        given: Json = shapes.read(shape, value if value is not None else {})
        return given

    def write(self, operation: OperationModel, result: Json, request_id: str) -> Reply:
        name = operation.name
        shape = operation.output_shape
        inner = "" if shape is None else _xml_members(shape, result)
        space = operation.service_model.metadata.get("xmlNamespace", "")
        body = (
            f'<{name}Response xmlns="{space}"><{name}Result>{inner}</{name}Result>'
            f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata>"
            f"</{name}Response>"
        )
        return Reply(status=200, body=body.encode(), media_type="text/xml", headers=_id(request_id))

    def fault(self, status: int, code: str, message: str, request_id: str) -> Reply:
        body = (
            f"<ErrorResponse><Error><Type>{'Sender' if status < 500 else 'Receiver'}</Type>"
            f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
            f"<RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        return Reply(
            status=status, body=body.encode(), media_type="text/xml", headers=_id(request_id)
        )


def _form(request: Request) -> list[tuple[str, str]]:
    text = request.body.decode("latin-1") if request.body else request.query
    return parse_qsl(text, keep_blank_values=True)


def _from_pairs(shape: Shape, pairs: Mapping[str, str], prefix: str) -> Any:
    """A value from `Name.member.1=...` pairs; None where there is none."""
    if isinstance(shape, StructureShape):
        at = prefix + "." if prefix else ""
        members = {
            name: _from_pairs(member, pairs, at + member.serialization.get("name", name))
            for name, member in shape.members.items()
        }
        found = {name: value for name, value in members.items() if value is not None}
        return found or None
    if isinstance(shape, ListShape):
        inner = "" if shape.serialization.get("flattened") else ".member"
        items: list[Any] = []
        while (
            item := _from_pairs(shape.member, pairs, f"{prefix}{inner}.{len(items) + 1}")
        ) is not None:
            items.append(item)
        return items or None
    text = pairs.get(prefix)
    return None if text is None else _from_text(shape, text)


def _from_text(shape: Shape, text: str) -> Any:
    """A scalar that came as text; `shapes.read` refuses what does not fit its type."""
    if shape.type_name == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        if shape.type_name in ("integer", "long"):
            return int(text)
        if shape.type_name in ("float", "double"):
            return float(text)
    except ValueError:
        pass
    return text


def _xml(shape: Shape, name: str, value: Any) -> str:
    if isinstance(shape, ListShape):
        tag = shape.member.serialization.get("name", "member")
        if shape.serialization.get("flattened"):
            return "".join(_xml(shape.member, name, item) for item in value)
        return f"<{name}>{''.join(_xml(shape.member, tag, item) for item in value)}</{name}>"
    if isinstance(shape, MapShape):
        entries = "".join(
            f"<entry>{_xml(shape.key, 'key', key)}{_xml(shape.value, 'value', item)}</entry>"
            for key, item in value.items()
        )
        return f"<{name}>{entries}</{name}>"
    if isinstance(shape, StructureShape):
        return f"<{name}>{_xml_members(shape, value)}</{name}>"
    return f"<{name}>{escape(_as_text(shape, value))}</{name}>"


def _xml_members(shape: StructureShape, value: Mapping[str, Any]) -> str:
    return "".join(
        _xml(shape.members[name], shape.members[name].serialization.get("name", name), item)
        for name, item in value.items()
        if item is not None
    )


def _as_text(shape: Shape, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if shape.type_name == "timestamp":
        return iso(value)
    return str(value)


# ── rest-json ─────────────────────────────────────────────────────────────────────────────────


class _RestJsonFormat:
    def operation(self, model: ServiceModel, request: Request) -> OperationModel:
        for method, pattern, name in _routes(model):
            if method == request.method and pattern.fullmatch(request.path):
                return model.operation_model(name)
        raise unknown_operation(f"{request.method} {request.path}")

    def read(self, operation: OperationModel, request: Request) -> Json:
        shape = operation.input_shape
        if shape is None:
            return {}
        pattern = _path_pattern(operation.http["requestUri"])
        found = pattern.fullmatch(request.path)
        in_path = {} if found is None else found.groupdict()
        query = dict(parse_qsl(request.query, keep_blank_values=True))
        payload = shape.serialization.get("payload", "")
        is_blob = bool(payload) and shape.members[payload].type_name == "blob"
        body = {} if is_blob or not request.body else _parsed(request.body)
        given: Json = {}
        for name, member in shape.members.items():
            wire_name = member.serialization.get("name", name)
            value: Any = None
            match member.serialization.get("location"):
                case "uri":
                    text = in_path.get(_group(wire_name))
                    value = None if text is None else _from_text(member, unquote(text))
                case "querystring":
                    text = query.get(wire_name)
                    value = None if text is None else _from_text(member, text)
                case "header":
                    text = request.headers.get(wire_name.lower())
                    value = None if text is None else _from_text(member, text)
                case None if name == payload:
                    value = request.body if is_blob else body
                case None if not payload and isinstance(body, Mapping):
                    value = body.get(wire_name)
            if value is not None:
                given[name] = shapes.read(member, value, name)
            elif name in shape.required_members:
                raise errors.InvalidInput(name, None, "is required")
        return given

    def write(self, operation: OperationModel, result: Json, request_id: str) -> Reply:
        shape = operation.output_shape
        status = operation.http.get("responseCode", 200)
        headers = list(_id(request_id))
        media_type = "application/json"
        body: Any = {}
        if shape is not None:
            payload = shape.serialization.get("payload", "")
            for name, value in result.items():
                if value is None:
                    continue
                member = shape.members[name]
                match member.serialization.get("location"):
                    case "header" if member.serialization["name"] == "Content-Type":
                        media_type = value
                    case "header":
                        headers.append((member.serialization["name"].lower(), str(value)))
                    case "statusCode":
                        status = value
                    case None if name == payload:
                        body = value if member.type_name == "blob" else shapes.write(member, value)
                    case None:
                        body[member.serialization.get("name", name)] = shapes.write(member, value)
        written = body if isinstance(body, bytes) else _dumped(body)
        return Reply(status=status, body=written, media_type=media_type, headers=tuple(headers))

    def fault(self, status: int, code: str, message: str, request_id: str) -> Reply:
        return _json_fault(status, code, message, request_id, "application/json")


@functools.cache
def _routes(model: ServiceModel) -> Sequence[tuple[str, re.Pattern[str], str]]:
    """Method, path and operation; those with the most fixed text first."""
    found = []
    for name in model.operation_names:
        http = model.operation_model(name).http
        found.append((http["method"], _path_pattern(http["requestUri"]), name))
    return sorted(found, key=lambda route: len(_VARIABLE.sub("", route[1].pattern)), reverse=True)


_LABEL = re.compile(r"\{(\w+)(\+?)\}")
_VARIABLE = re.compile(r"\(\?P<\w+>[^)]*\)")


@functools.cache
def _path_pattern(uri: str) -> re.Pattern[str]:
    path = uri.partition("?")[0]
    parts, at = [], 0
    for label in _LABEL.finditer(path):
        inner = ".+" if label[2] else "[^/]+"
        parts.append(re.escape(path[at : label.start()]) + f"(?P<{_group(label[1])}>{inner})")
        at = label.end()
    return re.compile("".join(parts) + re.escape(path[at:]).rstrip("/") + "/?")


def _group(label: str) -> str:
    return "p_" + re.sub(r"\W", "_", label)


def unknown_operation(name: str) -> AwsError:
    """As real regions answer for what they do not have."""
    return AwsError("UnknownOperationException", f"there is no operation {name!r} here")


_FORMATS: Mapping[str, WireFormat] = {
    "json": _JsonFormat(),
    "query": _QueryFormat(),
    "rest-json": _RestJsonFormat(),
}

#: A description of how an error is written, for whoever answers before a service is known.
Fault = Callable[[int, str, str, str], Reply]
