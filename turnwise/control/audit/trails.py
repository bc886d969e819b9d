"""Trails: deliver an account's audit records, as they come, to a bucket or a folder.

A trail has *windows* of the audit trail, one for each time that it was logging: [after, through].
Its cursor is the `after` of the first. A file holds the records of one stretch that its selectors
select. What a file will hold is written down before it is written, and its content and name follow
from that alone; so a server that is killed in between writes the same file again, and no record is
in two files or in none.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from turnwise import errors
from turnwise.control.audit import selectors as audit_selectors
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.record import canonical
from turnwise.control.audit.selectors import Facets, selects
from turnwise.domain.access import Account, Action, Principal
from turnwise.domain.audit import AuditRecord
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, Resources

log = logging.getLogger(__name__)

KIND = "trail"
Json = dict[str, Any]

#: Seconds between two deliveries of a trail, and after one that failed.
DELIVER_S = 5.0
#: Trails of one account, as in CloudTrail.
MAX_TRAILS = 5

_NAME = re.compile(r"[A-Za-z0-9](?!.*[._-]{2})[A-Za-z0-9._-]{1,126}[A-Za-z0-9]")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Buckets(Protocol):
    """Where files of a trail go that names a bucket."""

    async def exists(self, account_id: str, bucket: str) -> bool:
        """Whether the account has such a bucket."""
        ...

    async def put(self, account_id: str, bucket: str, key: str, data: bytes) -> Any:
        """Write an object. Raises `NotFound` for a bucket that does not exist."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """A trail as it is kept. Exactly one of `bucket` and `folder` is set.

    `windows` are [after, through] by record number, `through` None while it is logging.
    `delivering` is {after, through, key} of a file that is being written.
    """

    name: str
    bucket: str = ""
    prefix: str = ""
    folder: str = ""
    classic: Sequence[Json] = ()
    advanced: Sequence[Json] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    windows: Sequence[Sequence[int | None]] = ()
    delivering: Mapping[str, Any] | None = None
    started_at: float | None = None
    stopped_at: float | None = None
    delivered_at: float | None = None
    attempted_at: float | None = None
    error: str = ""
    files: int = 0

    @property
    def is_logging(self) -> bool:
        """Whether what happens now is for it."""
        return bool(self.windows) and self.windows[-1][1] is None

    @property
    def selectors(self) -> dict[str, Sequence[Json]]:
        """As `audit_selectors.selects` takes them."""
        return {"classic": self.classic, "advanced": self.advanced}


class Trails:
    """The trails of all accounts, and the task that delivers their files."""

    def __init__(
        self,
        audit: AuditTrail,
        resources: Resources,
        clock: Clock,
        *,
        region: str,
        buckets: Buckets | None = None,
        deliver_s: float = DELIVER_S,
    ) -> None:
        self._audit = audit
        self._resources = resources
        self._clock = clock
        self._region = region
        self._buckets = buckets
        self._deliver_s = deliver_s
        self._known: dict[tuple[str, str], tuple[Account, Trail]] = {}
        self._moving = asyncio.Lock()  # held from a look at a trail to the change that it leads to
        self._nudged = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self, accounts: Sequence[Account]) -> None:
        """Read what trails there are and go on delivering."""
        for account in accounts:
            for found in await self._resources.resources(account.account_id, KIND):
                self._known[account.account_id, found.name] = (account, _trail(found))
        self._select_data()
        self._audit.on_append(self._arrived)
        self._nudged.set()  # for what came after the last delivery before the server ended
        self._task = asyncio.create_task(self._deliver_for_ever())

    async def close(self) -> None:
        """Deliver what there is, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(errors.TurnwiseError):  # then after the next start
            await self._audit.flush()
        await self.deliver()

    # ── what clients ask for ──────────────────────────────────────────────────────────────────

    async def create(
        self,
        principal: Principal,
        account: Account,
        name: str,
        *,
        bucket: str = "",
        prefix: str = "",
        folder: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> Trail:
        """A trail that does not log yet, for all management events."""
        principal.require_all(Action.MANAGE, "trails")
        check_name(name)
        self._check_place(principal, bucket, prefix, folder)
        await self._check_bucket(account.account_id, bucket)
        made = Trail(
            name=name,
            bucket=bucket,
            prefix=prefix,
            folder=folder,
            classic=audit_selectors.DEFAULT,
            options=options or {},
        )
        async with self._moving:
            mine = [key for key in self._known if key[0] == account.account_id]
            if (account.account_id, name) in mine:
                raise errors.Conflict(f"trail {name!r} exists already")
            if len(mine) >= MAX_TRAILS:
                raise errors.LimitExceeded(f"an account may have {MAX_TRAILS} trails")
            now = self._clock.now()
            body = dataclasses.asdict(made)
            await self._resources.create_resource(
                Resource(
                    account_id=account.account_id, kind=KIND, name=name, body=body, created_at=now
                )
            )
            self._known[account.account_id, name] = (account, made)
        return made

    async def update(self, principal: Principal, name: str, changes: Mapping[str, Any]) -> Trail:
        """Change where a trail's files go, or its options."""
        principal.require_all(Action.MANAGE, "trails")
        async with self._moving:
            trail = self._find(principal, name)
            options = {**trail.options, **changes.get("options", {})}
            place = {key: changes[key] for key in ("bucket", "prefix", "folder") if key in changes}
            if place.get("bucket"):
                place["folder"] = ""
            changed = dataclasses.replace(trail, options=options, **place)
            self._check_place(principal, changed.bucket, changed.prefix, changed.folder)
            await self._check_bucket(principal.account_id, changed.bucket)
            return await self._keep(principal.account_id, changed)

    async def delete(self, principal: Principal, name: str) -> Trail:
        """Forget a trail; the files that it has delivered stay."""
        principal.require_all(Action.MANAGE, "trails")
        async with self._moving:
            trail = self._find(principal, name)
            await self._resources.delete_resource(principal.account_id, KIND, name)
            del self._known[principal.account_id, name]
            self._select_data()
            return trail

    def trail(self, principal: Principal, name: str) -> Trail:
        """One trail. Raises `NotFound`."""
        principal.require_all(Action.READ, "trails")
        return self._find(principal, name)

    def trails(self, principal: Principal) -> list[Trail]:
        """Those of the caller's account, by name."""
        principal.require_all(Action.READ, "trails")
        mine = [each for key, (_, each) in self._known.items() if key[0] == principal.account_id]
        return sorted(mine, key=lambda each: each.name)

    async def start_logging(self, principal: Principal, name: str) -> Trail:
        """Deliver what happens from now on; no change while it is logging."""
        principal.require_all(Action.MANAGE, "trails")
        async with self._moving:
            trail = self._find(principal, name)
            if trail.is_logging:
                return trail
            after = await self._audit.last_seq(principal.account_id)
            now = self._clock.now()
            windows = [*trail.windows, [after, None]]
            return await self._keep(
                principal.account_id,
                dataclasses.replace(trail, windows=windows, started_at=now, stopped_at=None),
            )

    async def stop_logging(self, principal: Principal, name: str) -> Trail:
        """Deliver what has happened, and nothing that happens after."""
        principal.require_all(Action.MANAGE, "trails")
        async with self._moving:
            trail = self._find(principal, name)
            if not trail.is_logging:
                return trail
            through = await self._audit.last_seq(principal.account_id)
            *earlier, (after, _) = trail.windows
            now = self._clock.now()
            ended = dataclasses.replace(trail, windows=[*earlier, [after, through]], stopped_at=now)
            await self._keep(principal.account_id, ended)
            await self._catch_up(principal.account_id, name)
            return self._find(principal, name)

    async def put_selectors(
        self,
        principal: Principal,
        name: str,
        *,
        classic: Sequence[Json] = (),
        advanced: Sequence[Json] = (),
    ) -> Trail:
        """Replace what a trail selects. Raises `InvalidInput`."""
        principal.require_all(Action.MANAGE, "trails")
        audit_selectors.check(classic, advanced)
        async with self._moving:
            # What happened until now is judged by the selectors that were there.
            await self._audit.flush()
            await self._catch_up(principal.account_id, name)
            trail = self._find(principal, name)
            return await self._keep(
                principal.account_id,
                dataclasses.replace(trail, classic=list(classic), advanced=list(advanced)),
            )

    def _check_place(self, principal: Principal, bucket: str, prefix: str, folder: str) -> None:
        if bool(bucket) == bool(folder):
            raise errors.InvalidInput(
                "bucket", bucket, "and a folder exclude each other", remedy="name one of the two"
            )
        if bucket and not _BUCKET.fullmatch(bucket):
            raise errors.InvalidInput(
                "S3BucketName", bucket, "is no bucket's name", remedy="3 to 63 of a-z, 0-9, . and -"
            )
        if len(prefix) > 200 or prefix.startswith("/") or ".." in PurePosixPath(prefix).parts:
            raise errors.InvalidInput(
                "S3KeyPrefix", prefix, "is no prefix", remedy="up to 200 characters, without .."
            )
        if not folder:
            return
        if not principal.is_operator:
            raise errors.Denied("only the operator's key may name a folder; name a bucket instead")
        if not Path(folder).is_absolute():
            raise errors.InvalidInput(
                "folder", folder, "is not absolute", remedy="name it from / on, on the server"
            )

    async def _check_bucket(self, account_id: str, bucket: str) -> None:
        if not bucket or (self._buckets and await self._buckets.exists(account_id, bucket)):
            return
        raise errors.NotFound("bucket", bucket, remedy="create it first, or name a folder")

    def _find(self, principal: Principal, name: str) -> Trail:
        found = self._known.get((principal.account_id, name))
        if found is None:
            raise errors.NotFound("trail", name)
        return found[1]

    async def _keep(self, account_id: str, trail: Trail) -> Trail:
        body = dataclasses.asdict(trail)
        await self._resources.change_resource(
            Resource(account_id=account_id, kind=KIND, name=trail.name, body=body)
        )
        account, _ = self._known[account_id, trail.name]
        self._known[account_id, trail.name] = (account, trail)
        self._select_data()
        self._nudged.set()
        return trail

    # ── which data events are recorded ────────────────────────────────────────────────────────

    def _select_data(self) -> None:
        selecting: dict[str, list[dict[str, Sequence[Json]]]] = {}
        for (account_id, _), (_, trail) in self._known.items():
            if trail.is_logging and audit_selectors.selects_data(trail.selectors):
                selecting.setdefault(account_id, []).append(trail.selectors)

        def wants(account_id: str, event: Facets) -> bool:
            return any(selects(each, event) for each in selecting.get(account_id, ()))

        self._audit.select_data(wants if selecting else None)

    # ── delivery ──────────────────────────────────────────────────────────────────────────────

    def _arrived(self, account_id: str) -> None:
        if any(key[0] == account_id and each.windows for key, (_, each) in self._known.items()):
            self._nudged.set()

    async def _deliver_for_ever(self) -> None:
        while True:
            await self._nudged.wait()
            self._nudged.clear()
            await self.deliver()
            await self._clock.sleep(self._deliver_s)
            if any(each.error for _, each in self._known.values()):
                self._nudged.set()  # again

    async def deliver(self) -> None:
        """Write what is new of every trail. What fails is kept in the trail's status."""
        for account_id, name in list(self._known):
            async with self._moving:
                await self._catch_up(account_id, name)

    async def _catch_up(self, account_id: str, name: str) -> None:
        """Deliver all that is there, file by file; stop at the first that fails."""
        try:
            while await self._deliver_next(account_id, name):
                pass
        except Exception as error:  # supervised: a bucket or a disk must not end the others
            await self._failed(account_id, name, error)

    async def _failed(self, account_id: str, name: str, error: Exception) -> None:
        if not isinstance(error, errors.TurnwiseError | OSError):
            log.exception("trail %s cannot deliver", name)
        _, trail = self._known[account_id, name]
        text = f"{_ERROR_NAMES.get(type(error), type(error).__name__)}: {error}"
        if text != trail.error:
            log.error("trail %s cannot deliver: %s", name, text)
        changed = dataclasses.replace(trail, error=text, attempted_at=self._clock.now())
        account, _ = self._known[account_id, name]
        self._known[account_id, name] = (account, changed)  # the store may be full as well

    async def _deliver_next(self, account_id: str, name: str) -> bool:
        """One page of records into a file; False when there is no more."""
        found = self._known.get((account_id, name))
        if found is None or not found[1].windows:
            return False
        account, trail = found
        after, through = trail.windows[0]
        pending = trail.delivering
        if pending is not None:
            through = pending["through"]
        assert after is not None
        page = await self._audit.after(account_id, after, through)
        if not page and pending is not None:  # its records' time was over before they could go
            await self._advance(account, trail, pending["through"], has_file=False)
            return True
        if not page:
            return await self._end_window(account_id, trail)
        selectors = trail.selectors if pending is None else pending["selectors"]
        chosen = await asyncio.to_thread(_chosen, page, selectors)
        if chosen and pending is None:
            key = _key(account, self._region, trail, chosen[0])
            about = {"through": page[-1].seq, "key": key, "selectors": selectors}
            trail = await self._keep(account_id, dataclasses.replace(trail, delivering=about))
        if chosen:
            data = await asyncio.to_thread(_file, chosen)
            assert trail.delivering is not None
            await self._put(account_id, trail, trail.delivering["key"], data)
        await self._advance(account, trail, page[-1].seq, has_file=bool(chosen))
        return True

    async def _advance(self, account: Account, trail: Trail, after: int, *, has_file: bool) -> None:
        windows = [[after, trail.windows[0][1]], *trail.windows[1:]]
        moved = dataclasses.replace(trail, windows=windows, delivering=None)
        if has_file:
            now = self._clock.now()
            files = trail.files + 1
            moved = dataclasses.replace(
                moved, delivered_at=now, attempted_at=now, error="", files=files
            )
            await self._keep(account.account_id, moved)
        else:  # nothing to see in the store: a restart looks at these records once more
            self._known[account.account_id, trail.name] = (account, moved)

    async def _end_window(self, account_id: str, trail: Trail) -> bool:
        """Leave a window that is closed and delivered; whether there is another."""
        if trail.windows[0][1] is None:
            return False
        await self._keep(account_id, dataclasses.replace(trail, windows=trail.windows[1:]))
        return True

    async def _put(self, account_id: str, trail: Trail, key: str, data: bytes) -> None:
        if trail.folder:
            await asyncio.to_thread(_write, Path(trail.folder) / key, data)
        elif self._buckets is None:
            raise errors.Unavailable("this server has no buckets; name a folder instead")
        else:
            await self._buckets.put(account_id, trail.bucket, key, data)


_ERROR_NAMES: Mapping[type[Exception], str] = {
    errors.NotFound: "NoSuchBucket",
    errors.Denied: "AccessDenied",
    FileNotFoundError: "NoSuchFolder",
}


def check_name(name: str) -> None:
    """Raise `InvalidInput` for a name that CloudTrail would refuse."""
    if not _NAME.fullmatch(name):
        raise errors.InvalidInput(
            "Name",
            name,
            "is no trail's name",
            remedy="use 3 to 128 letters, digits, and single ., _ or - inside",
        )


def _trail(found: Resource) -> Trail:
    known = {field.name for field in dataclasses.fields(Trail)}
    return Trail(**{key: value for key, value in found.body.items() if key in known})


def _chosen(
    page: Sequence[AuditRecord], selectors: Mapping[str, Sequence[Json]]
) -> list[AuditRecord]:
    return [each for each in page if selects(selectors, Facets.of(json.loads(each.body)))]


def _file(records: Sequence[AuditRecord]) -> bytes:
    """Records as one of CloudTrail's files; the same bytes for the same records."""
    body = '{"Records":[' + ",".join(each.body for each in records) + "]}"
    return gzip.compress(body.encode(), compresslevel=6, mtime=0)


def _key(account: Account, region: str, trail: Trail, first: AuditRecord) -> str:
    """As CloudTrail names its files; unique by trail and first record."""
    at = time.gmtime(first.at)
    day, minute = time.strftime("%Y/%m/%d", at), time.strftime("%Y%m%dT%H%MZ", at)
    unique = hashlib.sha256(canonical([trail.name, first.seq, first.digest]).encode())
    number = account.number
    name = f"{number}_CloudTrail_{region}_{minute}_{unique.hexdigest()[:16]}.json.gz"
    prefix = f"{trail.prefix.rstrip('/')}/" if trail.prefix else ""
    return f"{prefix}AWSLogs/{number}/CloudTrail/{region}/{day}/{name}"


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.partial")
    try:
        descriptor = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
