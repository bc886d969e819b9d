"""What of the server's own machine an account may name.

The operator's account may name all that the server can read and run. Any other has its own buckets,
its registered models and agents, and the base models that the operator has added; a path would
lead it to the operator's files and other accounts', and a Python function is the server's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from turnwise import errors
from turnwise.control.objects.locations import is_bucket
from turnwise.domain.access import OPERATORS
from turnwise.domain.job import AgentKind, JobSpec

#: Whether a folder is one of the base models that the operator has added.
IsBase = Callable[[str], bool]


def check_reach(account_id: str, spec: JobSpec) -> None:
    """Raise `Denied` for a job that names what is the operator's, of another account."""
    if account_id == OPERATORS:
        return
    for field, value, remedy in _named(spec):
        raise denied(field, value, remedy)


def check_base(account_id: str, model: str, is_base: IsBase | None) -> None:
    """Raise `Denied` for another account's base model that nobody has added. Blocks."""
    if account_id != OPERATORS and is_base is not None and not is_base(model):
        raise denied("model", model, "use the folder of a base model of SageMakerPublicHub")


def adapter_folders(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """Settings that name an adapter by its folder rather than by its registered name."""
    models = {"input_adapter": spec.input_adapter, "resume_from": spec.resume_from}
    models |= {f"evaluation.models[{n}]": m for n, m in enumerate(spec.evaluation.models)}
    return ((field, value) for field, value in models.items() if Path(value).is_absolute())


def denied(field: str, value: str, remedy: str) -> errors.Denied:
    """The refusal."""
    return errors.Denied(
        f"{field}: {value!r} is on the server's own machine, which only the operator's account may "
        f"name; {remedy}"
    )


def _named(spec: JobSpec) -> Iterator[tuple[str, str, str]]:
    """Settings that name something of the machine: name, value, and what to use in its place."""
    in_bucket = "use s3://bucket/key"
    for field in ("dataset", "validation_dataset", "output_path"):
        value = getattr(spec, field)
        if value and not is_bucket(value):
            yield field, value, in_bucket
    for field, value in adapter_folders(spec):
        yield field, value, "use the name of a registered model"
    if not spec.agent.name and spec.agent.kind is AgentKind.PYTHON:
        yield "agent.target", spec.agent.target, "register an agent that is reached by HTTP"
    for number, scorer in enumerate(spec.evaluation.scorers):
        if scorer.target:
            yield f"evaluation.scorers[{number}].target", scorer.target, "use a scorer with a url"
