"""The groups that a job registers its models in: each holds one kind."""

from __future__ import annotations

from turnwise import errors
from turnwise.domain.job import JobKind, JobSpec
from turnwise.ports import Store


async def check_groups(store: Store, account_id: str, spec: JobSpec) -> None:
    """Raise `InvalidInput` where a group holds models of the other kind already."""
    if spec.kind is not JobKind.TRAIN:
        return
    for field, group, kind in (
        ("output_group", spec.adapters_in, "adapter"),
        ("checkpoint_group", spec.checkpoints_in, "checkpoint"),
    ):
        try:
            newest = await store.package(account_id, group)
        except errors.NotFound:
            continue
        if newest.kind != kind:
            raise errors.InvalidInput(
                field,
                group,
                f"holds {newest.kind}s, as {newest.name}",
                remedy=f"name a new group, or one of {kind}s",
            )
