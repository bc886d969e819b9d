"""Which operations of AWS this server answers, read off its handlers, as docs/aws-operations.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from turnwise.wire.aws.door import Answering, Modelled, Planes
from turnwise.wire.aws.runtime import PATHS
from turnwise.wire.aws.s3.service import S3
from turnwise.wire.aws.sagemaker.mlflow_apps import MlflowApps
from turnwise.wire.aws.services import Rooms, open_services

_HEAD = """\
# Operations of AWS that are served

Printed from the handlers in `turnwise/wire/aws/` by
`python -m turnwise.wire.aws.coverage > docs/aws-operations.md`.

All of them are on the server's one address. Parameters are checked by AWS's own model of the
service before a handler sees them. An operation that is not listed is answered with
`UnknownOperationException` (S3: `NotImplemented`), and nothing is done. Beside the operations, the
server answers what AWS's SDKs call without naming one: chat completions at
`/v1/chat/completions`, and MLflow's REST API (see [sagemaker.md](sagemaker.md)).
"""

_TITLES = {
    "sagemaker": "SageMaker",
    "sagemakerjobruntime": "SageMaker job runtime",
    "s3": "S3",
    "logs": "CloudWatch Logs",
    "cloudtrail": "CloudTrail",
    "sts": "STS",
    "iam": "IAM",
    "lambda": "Lambda",
    "bedrock-agentcore-control": "Bedrock AgentCore, control plane",
    "bedrock-agentcore": "Bedrock AgentCore, data plane",
}


#: The job runtime has no handler per operation; the data plane answers it.
_RUNTIME = {
    "Sample": "A turn of the rollout's model: a chat completion as OpenAI has it, in and out.",
    "SampleWithResponseStream": "The same as a stream of chunks, which ends with `data: [DONE]`.",
    "CompleteRollout": "It is ready, or failed. The same report again is answered as before.",
    "UpdateReward": "One reward, or one per turn. The same report again is answered as before.",
}


class _Room:
    """Stands for any room: handlers are only looked at here, never called."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: object, **options: object) -> Any:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation, and what its handler says of it."""

    name: str
    meaning: str


def operations() -> dict[str, list[Operation]]:
    """Every operation that is answered, by botocore's name of its service."""
    room: Any = _Room()
    mlflow = MlflowApps(room, room, url="", clock=room, new_id=room, missing="", start=room)
    rooms = Rooms(**{field.name: room for field in fields(Rooms)} | {"mlflow": mlflow})
    runtime = [Operation(name=name, meaning=_RUNTIME[name]) for name in sorted(set(PATHS.values()))]
    found = {"sagemakerjobruntime": runtime}
    for service in open_services(rooms):
        for name, handlers in _handlers(service):
            found[name] = [
                Operation(name=operation, meaning=_first_line(handler))
                for operation, handler in sorted(handlers.items())
            ]
    return {name: found[name] for name in _TITLES if name in found} | found


def _handlers(service: Answering) -> Iterator[tuple[str, Mapping[str, Any]]]:
    match service:
        case Planes():
            for plane in service.planes:
                yield from _handlers(plane)
        case Modelled():
            yield service.service.name, service.service.handlers
        case S3():
            yield service.name, service.operations
        case _:
            raise TypeError(f"{service!r} does not say what it answers")


def _first_line(handler: object) -> str:
    return (inspect.getdoc(handler) or "").partition("\n")[0]


def markdown() -> str:
    """The page."""
    lines = [_HEAD]
    for service, answered in operations().items():
        lines += [f"## {_TITLES.get(service, service)}", "", f'`boto3.client("{service}")`', ""]
        lines += ["| operation | here |", "|---|---|"]
        lines += [f"| `{each.name}` | {each.meaning.replace('|', '&#124;')} |" for each in answered]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
