"""Uploaded evaluators of all accounts: their records, their archives, and their builds.

    create -> BUILDING -> put_archive -> build -> ACTIVE
                                              \\-> BUILD_FAILED, with the reason in `message`

A build runs in the background. One that a former process left is started again (`recover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.domain.resource import Resource
from turnwise.ports import Blobs, Built, Clock, EvaluatorBuilder, NewId, Resources

log = logging.getLogger(__name__)

KIND = "evaluator"  # of the records

#: Largest archive, bytes.
MAX_ARCHIVE = 512 << 20

#: Builds under way at once; others wait.
MAX_BUILDS = 2

#: Most of a build's log that is shown.
MAX_LOG = 1 << 20

_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

#: What its owner may change; the rest is the service's.
CHANGEABLE = frozenset(
    ["entry_point", "display_name", "description", "commit_hash", "requirements", "default_dataset"]
)

#: Whether a build was asked for and has not ended, beside the evaluator in its record.
_IS_ASKED = "is_build_asked"

_NAMES = tuple(field.name for field in dataclass_fields(Evaluator))


class Evaluators:
    """The evaluators of all accounts. Every call requires a principal with the right."""

    def __init__(
        self,
        resources: Resources,
        blobs: Blobs,
        builder: EvaluatorBuilder,
        clock: Clock,
        new_id: NewId,
        *,
        max_archive: int = MAX_ARCHIVE,
    ) -> None:
        self._resources = resources
        self._blobs = blobs
        self._builder = builder
        self._clock = clock
        self._new_id = new_id
        self._max_archive = max_archive
        self._builds: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._changes: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._room = asyncio.Semaphore(MAX_BUILDS)

    async def create(self, principal: Principal, evaluator: Evaluator) -> Evaluator:
        """A new evaluator that waits for its archive. Raises `Conflict` if there is one."""
        principal.require_all(Action.MANAGE, "evaluators")
        if not _ID.fullmatch(evaluator.evaluator_id):
            raise errors.InvalidInput(
                "evaluatorId",
                evaluator.evaluator_id,
                "is not an evaluator's id",
                remedy="use a small letter and then up to 62 of a-z, 0-9 and -, the last no -",
            )
        made = replace(
            evaluator,
            account_id=principal.account_id,
            state=EvaluatorState.BUILDING,
            message="waiting for its archive",
            archive="",
            archive_sha256="",
            created_by=evaluator.created_by or principal.name,
            created_at=self._clock.now(),
        )
        try:
            record = await self._resources.create_resource(_record(made))
        except errors.Conflict:
            raise errors.Conflict(f"evaluator {made.evaluator_id!r} exists already") from None
        return _evaluator(record)

    async def get(self, principal: Principal, evaluator_id: str) -> Evaluator:
        """Raises `NotFound`."""
        principal.require_all(Action.READ, "evaluators")
        return await self.of_job(principal.account_id, evaluator_id)

    async def list(self, principal: Principal) -> list[Evaluator]:
        """Oldest first."""
        principal.require_all(Action.READ, "evaluators")
        records = await self._resources.resources(principal.account_id, KIND)
        return [_evaluator(record) for record in records]

    async def change(self, principal: Principal, evaluator_id: str, **fields: Any) -> Evaluator:
        """Change what is its owner's to change. Raises `NotFound`, `InvalidInput`."""
        principal.require_all(Action.MANAGE, "evaluators")
        for name, value in fields.items():
            if name not in CHANGEABLE or not isinstance(value, str):
                raise errors.InvalidInput(
                    name,
                    value,
                    "cannot be changed to that",
                    remedy=f"change text in one of {', '.join(sorted(CHANGEABLE))}",
                )
        return await self._changed(principal.account_id, evaluator_id, fields)

    async def delete(self, principal: Principal, evaluator_id: str) -> Evaluator:
        """Forget it, with its archive and what was built; as it was. Raises `NotFound`.

        Jobs that run with it go on: each has a copy.
        """
        principal.require_all(Action.MANAGE, "evaluators")
        account_id = principal.account_id
        former = await self.of_job(account_id, evaluator_id)
        await self._stop_build((account_id, evaluator_id))
        async with self._changes[account_id, evaluator_id]:
            await self._resources.delete_resource(account_id, KIND, evaluator_id)
            await self._blobs.delete(_folder(account_id, evaluator_id))
            await self._builder.forget(account_id, evaluator_id)
        return former

    async def put_archive(
        self, principal: Principal, evaluator_id: str, pieces: AsyncIterator[bytes], size: int
    ) -> Evaluator:
        """Keep its tar.gz of `size` bytes; it is synced once this returns.

        Raises `InvalidInput` for another number of bytes, and for one above the limit.
        """
        principal.require_all(Action.MANAGE, "evaluators")
        account_id = principal.account_id
        await self.of_job(account_id, evaluator_id)
        if not 0 < size <= self._max_archive:
            raise errors.InvalidInput(
                "size", size, f"must be 1 to {self._max_archive} bytes", remedy="pack less"
            )
        key = f"{_folder(account_id, evaluator_id)}/{self._new_id('archive')}.tar.gz"
        try:
            sha256 = await _keep(self._blobs.path(key), pieces, size)
            given = {"archive": key, "archive_sha256": sha256}
            former = await self.of_job(account_id, evaluator_id)
            changed = await self._changed(account_id, evaluator_id, given)
        except BaseException:
            await self._blobs.delete(key)
            raise
        if former.archive:
            await self._blobs.delete(former.archive)
        return changed

    async def build(self, principal: Principal, evaluator_id: str) -> Evaluator:
        """Start its build, in place of one that is under way. Raises `NotFound`."""
        principal.require_all(Action.MANAGE, "evaluators")
        key = (principal.account_id, evaluator_id)
        await self._stop_build(key)
        changes = {"state": EvaluatorState.BUILDING, "message": "building"}
        building = await self._changed(*key, changes, is_asked=True)
        self._start_build(building)
        return building

    async def build_log(self, principal: Principal, evaluator_id: str) -> str:
        """What its newest build printed, so far; the end of it where that is long."""
        principal.require_all(Action.READ, "evaluators")
        evaluator = await self.of_job(principal.account_id, evaluator_id)
        return await asyncio.to_thread(_end_of, self._log_file(evaluator))

    async def of_job(self, account_id: str, evaluator_id: str) -> Evaluator:
        """One for a job of its account. Raises `NotFound`."""
        try:
            record = await self._resources.resource(account_id, KIND, evaluator_id)
        except errors.NotFound:
            raise errors.NotFound(
                "evaluator", evaluator_id, remedy="upload it: eval-protocol upload"
            ) from None
        return _evaluator(record)

    async def check_for_job(self, account_id: str, evaluator_id: str) -> None:
        """Raise `InvalidInput` unless a job may be made of it; one may wait for its build."""
        field = "agent.target"
        try:
            found = await self.of_job(account_id, evaluator_id)
        except errors.NotFound:
            raise errors.InvalidInput(
                field,
                evaluator_id,
                "is no evaluator of this account",
                remedy="upload it: eval-protocol upload",
            ) from None
        if found.state is EvaluatorState.BUILD_FAILED:
            raise errors.InvalidInput(
                field,
                evaluator_id,
                f"could not be built: {found.message}",
                remedy="correct it and upload it again",
            )

    async def recover(self, accounts: Sequence[Account]) -> None:
        """Start the builds again that a former process left."""
        for account in accounts:
            for record in await self._resources.resources(account.account_id, KIND):
                if record.body.get(_IS_ASKED):
                    self._start_build(_evaluator(record))

    async def close(self) -> None:
        """End the builds under way; the next start takes them up again."""
        builds = list(self._builds.values())
        for build in builds:
            build.cancel()
        await asyncio.gather(*builds, return_exceptions=True)

    async def settled(self, principal: Principal, evaluator_id: str) -> Evaluator:
        """Once no build of it is under way."""
        build = self._builds.get((principal.account_id, evaluator_id))
        if build is not None:
            await asyncio.wait([build])
        return await self.get(principal, evaluator_id)

    # ── builds ────────────────────────────────────────────────────────────────────────────────

    def _start_build(self, evaluator: Evaluator) -> None:
        key = (evaluator.account_id, evaluator.evaluator_id)
        self._builds[key] = asyncio.create_task(
            self._build(evaluator), name=f"build {evaluator.evaluator_id}"
        )

    async def _stop_build(self, key: tuple[str, str]) -> None:
        build = self._builds.pop(key, None)
        if build is not None:
            build.cancel()
            await asyncio.gather(build, return_exceptions=True)

    async def _build(self, evaluator: Evaluator) -> None:
        async with self._room:
            built = await self._built(evaluator)
        state = EvaluatorState.ACTIVE if built.is_active else EvaluatorState.BUILD_FAILED
        changes = {"state": state, "message": built.message}
        with contextlib.suppress(errors.NotFound):  # deleted meanwhile
            await self._changed(
                evaluator.account_id, evaluator.evaluator_id, changes, is_asked=False
            )

    async def _built(self, evaluator: Evaluator) -> Built:
        if not evaluator.archive:
            return Built(
                message="no archive was uploaded: ask getUploadEndpoint for a URL, PUT the tar.gz "
                "there, and validate again"
            )
        file = self._log_file(evaluator)
        await asyncio.to_thread(file.write_text, "")
        try:
            return await self._builder.build(evaluator, self._blobs.path(evaluator.archive), file)
        except Exception as error:
            log.exception("the build of evaluator %s broke", evaluator.evaluator_id)
            return Built(message=f"the build broke: {type(error).__name__}: {error}")

    def _log_file(self, evaluator: Evaluator) -> Path:
        return self._blobs.path(
            f"{_folder(evaluator.account_id, evaluator.evaluator_id)}/build.log"
        )

    async def _changed(
        self,
        account_id: str,
        evaluator_id: str,
        changes: Mapping[str, Any],
        *,
        is_asked: bool | None = None,
    ) -> Evaluator:
        await self.of_job(account_id, evaluator_id)  # of what is not there, no lock stays
        async with self._changes[account_id, evaluator_id]:
            former = await self.of_job(account_id, evaluator_id)
            record = await self._resources.resource(account_id, KIND, evaluator_id)
            asked = record.body.get(_IS_ASKED, False) if is_asked is None else is_asked
            changed = _record(replace(former, **changes), is_asked=asked)
            return _evaluator(await self._resources.change_resource(changed))


#: As `ports`' callers see it: what gives a job its evaluator.
OfJob = Callable[[str, str], Awaitable[Evaluator]]


async def _keep(file: Path, pieces: AsyncIterator[bytes], size: int) -> str:
    """Write exactly `size` bytes and sync them; their sha256, hex."""
    digest, written = hashlib.sha256(), 0
    with file.open("wb") as opened:
        async for piece in pieces:
            written += len(piece)
            if written > size:
                break
            digest.update(piece)
            await asyncio.to_thread(opened.write, piece)
        if written == size:
            await asyncio.to_thread(_sync, opened.fileno(), file.parent, opened.flush)
    if written != size:
        came = "more came" if written > size else f"only {written} bytes came"
        raise errors.InvalidInput(
            "size", size, f"was announced, but {came}", remedy="send the whole archive again"
        )
    return digest.hexdigest()


def _sync(file: int, folder: Path, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(file)
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _end_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - MAX_LOG))
            return opened.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _folder(account_id: str, evaluator_id: str) -> str:
    """The blob key that all of it is kept under."""
    return f"evaluators/{account_id}/{evaluator_id}"


def _record(evaluator: Evaluator, *, is_asked: bool = False) -> Resource:
    own = ("account_id", "evaluator_id", "created_at", "updated_at")
    body = {name: getattr(evaluator, name) for name in _NAMES if name not in own}
    return Resource(
        account_id=evaluator.account_id,
        kind=KIND,
        name=evaluator.evaluator_id,
        body=body | {"state": evaluator.state.value, _IS_ASKED: is_asked},
        created_at=evaluator.created_at,
    )


def _evaluator(record: Resource) -> Evaluator:
    body = {name: value for name, value in record.body.items() if name in _NAMES}
    return Evaluator(
        **body | {"state": EvaluatorState(record.body["state"])},
        account_id=record.account_id,
        evaluator_id=record.name,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
