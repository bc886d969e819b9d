"""Tags: pairs of text on any ARN of the account."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import wraps

from turnwise import errors
from turnwise.domain.access import Action
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources
from turnwise.wire.aws.paging import page
from turnwise.wire.aws.service import Call, Handler, Json

KIND = "tags"
#: What AWS allows on one resource.
MOST = 50


class Tags:
    """The tags of everything that has an ARN, kept under it.

    The callers check what may be tagged: here is only what is said about it.
    """

    def __init__(self, resources: Resources, clock: Clock) -> None:
        self._resources = resources
        self._clock = clock
        self._writing = asyncio.Lock()  # reading and writing back is one change

    async def put(self, call: Call, arn: str, tags: Sequence[Json]) -> list[Json]:
        """Add `{"Key", "Value"}` pairs, the later of one key standing; all there are now.

        Raises `InvalidInput` for a key that begins with "aws:", `LimitExceeded` past 50.
        """
        given = checked(tags)
        async with self._writing:
            kept = await self._pairs(call, arn) | given
            _check_count(kept, arn)
            if tags:
                await self._keep(call, arn, kept)
        return _listed(kept)

    async def of(self, call: Call, arn: str) -> list[Json]:
        """The tags of an ARN as `{"Key", "Value"}`, in the order of their coming."""
        return _listed(await self._pairs(call, arn))

    async def remove(self, call: Call, arn: str, keys: Sequence[str]) -> None:
        """Take tags off by their keys; those that are not there are no matter."""
        async with self._writing:
            before = await self._pairs(call, arn)
            kept = {key: value for key, value in before.items() if key not in keys}
            if kept != before:
                await self._keep(call, arn, kept)

    async def drop(self, call: Call, arn: str) -> None:
        """Forget the tags of what has been deleted."""
        async with self._writing:
            try:
                await self._resources.delete_resource(call.account.account_id, KIND, arn)
            except errors.NotFound:
                return

    async def _pairs(self, call: Call, arn: str) -> dict[str, str]:
        try:
            found = await self._resources.resource(call.account.account_id, KIND, arn)
        except errors.NotFound:
            return {}
        return {key: value for key, value in found.body["tags"]}

    def record(self, call: Call, arn: str, pairs: Mapping[str, str]) -> Resource:
        """The record of what an ARN is tagged with."""
        return Resource(
            account_id=call.account.account_id,
            kind=KIND,
            name=arn,
            body={"tags": [list(pair) for pair in pairs.items()]},
            created_at=self._clock.now(),
        )

    async def _keep(self, call: Call, arn: str, pairs: dict[str, str]) -> None:
        record = self.record(call, arn, pairs)
        try:
            await self._resources.change_resource(record)
        except errors.NotFound:
            await self._resources.create_resource(record)


def checked(tags: Sequence[Json]) -> dict[str, str]:
    """Tags as pairs. Raises `InvalidInput`, `LimitExceeded` for what nothing may be tagged with."""
    for tag in tags:
        if tag["Key"].lower().startswith("aws:"):
            raise errors.InvalidInput("Tags", tag["Key"], 'may not begin with "aws:"')
    pairs = {tag["Key"]: tag.get("Value", "") for tag in tags}
    _check_count(pairs, "what is tagged so")
    return pairs


def checking(handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """Handlers that look at `Tags` before they make what these are for."""
    return {name: _checking(handler) for name, handler in handlers.items()}


def _checking(handler: Handler) -> Handler:
    @wraps(handler)
    async def handle(call: Call, given: Json) -> Json:
        checked(given.get("Tags", ()))
        return await handler(call, given)

    return handle


def _check_count(pairs: Mapping[str, str], arn: str) -> None:
    if len(pairs) > MOST:
        raise errors.LimitExceeded(f"{arn} would have {len(pairs)} tags; {MOST} is the most")


def tag_handlers(tags: Tags) -> dict[str, Handler]:
    """AddTags, ListTags, DeleteTags."""

    async def add(call: Call, given: Json) -> Json:
        """Of anything with an ARN of the account, at most 50."""
        arn = _own(call, given["ResourceArn"], Action.MANAGE)
        return {"Tags": await tags.put(call, arn, given["Tags"])}

    async def listed(call: Call, given: Json) -> Json:
        """The tags of an ARN."""
        arn = _own(call, given["ResourceArn"], Action.READ)
        found, token = page(await tags.of(call, arn), given, default=MOST)
        return {"Tags": found, "NextToken": token}

    async def delete(call: Call, given: Json) -> Json:
        """By their keys."""
        arn = _own(call, given["ResourceArn"], Action.MANAGE)
        await tags.remove(call, arn, given["TagKeys"])
        return {}

    return {"AddTags": add, "ListTags": listed, "DeleteTags": delete}


def _own(call: Call, arn: str, action: Action) -> str:
    """The ARN, if it is of the caller's account and region, and the key may do that there."""
    call.principal.require(action)
    if call.principal.job_ids is not None:
        raise errors.Denied("this key is for some jobs; tags need one of the whole account")
    parts = arn.split(":", 5)
    if parts[3:5] != [call.region, call.account.number]:
        raise errors.NotFound("resource", arn)
    return arn


def _listed(pairs: dict[str, str]) -> list[Json]:
    return [{"Key": key, "Value": value} for key, value in pairs.items()]
