"""The models of an evaluation job: found, checked, and fixed to their versions."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from turnwise import errors
from turnwise.control.lineage import check_starts
from turnwise.domain.job import BASE, JobSpec
from turnwise.ports import Store


async def with_models(store: Store, account_id: str, spec: JobSpec) -> JobSpec:
    """The spec with every model to evaluate by a name that stays what it is.

    Raises `InvalidInput` for one that is not there, twice there, or of another base model, and
    `Conflict` or `Corrupted` for a registered one whose files are gone or changed.
    """
    field = "evaluation.models[{}]" if spec.evaluation.models else "input_adapter"
    models: list[str] = []
    for place, asked in enumerate(spec.evaluated_models):
        where = field.format(place)
        name = await _fixed(store, account_id, spec, asked, where)
        if name in models:
            raise errors.InvalidInput(where, asked, "is there twice; each model is needed once")
        models.append(name)
    evaluation = dataclasses.replace(spec.evaluation, models=tuple(models))
    return dataclasses.replace(spec, evaluation=evaluation)


async def _fixed(store: Store, account_id: str, spec: JobSpec, name: str, field: str) -> str:
    """A registered model's name has its version; a folder and the base are what they are."""
    if name == BASE:
        return BASE
    if Path(name).is_absolute():
        if not (Path(name) / "adapter_config.json").is_file():
            raise _unknown(field, name)
        return name
    try:
        package = await store.package(account_id, name)
    except errors.NotFound:
        raise _unknown(field, name) from None
    await asyncio.to_thread(check_starts, package, spec)
    return package.name


def _unknown(field: str, name: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        field,
        name,
        "is neither a registered model nor a PEFT folder",
        remedy=f"give {BASE!r}, a name of `turnwise models list`, or a folder's absolute path",
    )
