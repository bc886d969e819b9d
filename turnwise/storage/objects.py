"""Buckets and their objects: functions on an open connection. Content is in files, by blob name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, select, union_all

from turnwise import errors
from turnwise.domain.objects import Listing, Part, StoredObject, Upload, list_page
from turnwise.domain.resource import Resource
from turnwise.storage import resources
from turnwise.storage.tables import objects, upload_parts, uploads

_BUCKET = "bucket"  # the kind of their records


# ── buckets ───────────────────────────────────────────────────────────────────────────────────


def create_bucket(connection: Connection, account_id: str, bucket: str, now: float) -> None:
    """`Conflict` if the account has it."""
    made = Resource(account_id=account_id, kind=_BUCKET, name=bucket, created_at=now)
    resources.create(connection, made)


def buckets(connection: Connection, account_id: str) -> list[Resource]:
    """By name."""
    found = resources.listed(connection, account_id, _BUCKET, "")
    return sorted(found, key=lambda each: each.name)


def delete_bucket(connection: Connection, account_id: str, bucket: str) -> None:
    """`NotFound`; `Conflict` while it is not empty."""
    _check(connection, account_id, bucket)
    for table in (objects, uploads):
        where = table.c.account_id == account_id, table.c.bucket == bucket
        if connection.execute(select(table.c.bucket).where(*where).limit(1)).first():
            raise errors.Conflict(f"bucket {bucket!r} is not empty")
    resources.remove(connection, account_id, _BUCKET, bucket)


def _check(connection: Connection, account_id: str, bucket: str) -> None:
    resources.find(connection, account_id, _BUCKET, bucket)


# ── objects ───────────────────────────────────────────────────────────────────────────────────


def put(
    connection: Connection,
    account_id: str,
    stored: StoredObject,
    blob: str,
    replaces: str | None = None,
) -> list[str]:
    """Keep it in place of the one before; that one's blob. `Conflict` if it is not `replaces`."""
    _check(connection, account_id, stored.bucket)
    if replaces is not None:
        _check_replaced(connection, account_id, stored, replaces)
    freed = remove(connection, account_id, stored.bucket, [stored.key])
    connection.execute(objects.insert(), _object_row(account_id, stored, blob))
    return freed


def _check_replaced(
    connection: Connection, account_id: str, stored: StoredObject, replaces: str
) -> None:
    where = _in_bucket(objects, account_id, stored.bucket)
    query = select(objects.c.etag).where(*where, objects.c.key == stored.key.encode())
    if (connection.scalar(query) or "") != replaces:
        raise errors.Conflict(f"object {stored.key!r} is not the one that was to be replaced")


def find(
    connection: Connection, account_id: str, bucket: str, key: str
) -> tuple[StoredObject, str]:
    """An object and its blob; `NotFound`."""
    where = _in_bucket(objects, account_id, bucket)
    query = select(objects).where(*where, objects.c.key == key.encode())
    row = connection.execute(query).first()
    if row is None:
        _check(connection, account_id, bucket)
        raise errors.NotFound("object", key)
    return _object(row), row.blob


def listed(
    connection: Connection,
    account_id: str,
    bucket: str,
    prefix: str,
    delimiter: str,
    after: str,
    limit: int,
) -> Listing:
    """A page; see `domain.objects.list_page`."""
    _check(connection, account_id, bucket)

    def fetch(low: bytes, high: bytes, count: int) -> list[StoredObject]:
        query = select(objects).where(*_in_bucket(objects, account_id, bucket))
        query = query.where(objects.c.key >= low).order_by(objects.c.key).limit(count)
        if high:
            query = query.where(objects.c.key < high)
        return [_object(row) for row in connection.execute(query)]

    return list_page(fetch, prefix=prefix, delimiter=delimiter, after=after, limit=limit)


def remove(connection: Connection, account_id: str, bucket: str, keys: Sequence[str]) -> list[str]:
    """Remove those that are there; their blobs."""
    where = (
        *_in_bucket(objects, account_id, bucket),
        objects.c.key.in_([key.encode() for key in keys]),
    )
    freed = list(connection.scalars(select(objects.c.blob).where(*where)))
    if freed:
        connection.execute(delete(objects).where(*where))
    return freed


def remove_from(
    connection: Connection, account_id: str, bucket: str, keys: Sequence[str]
) -> list[str]:
    """`remove`, of a bucket that must be there."""
    _check(connection, account_id, bucket)
    return remove(connection, account_id, bucket, keys)


def _in_bucket(table: Table, account_id: str, bucket: str) -> tuple[Any, ...]:
    return table.c.account_id == account_id, table.c.bucket == bucket


def _object_row(account_id: str, stored: StoredObject, blob: str) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "bucket": stored.bucket,
        "key": stored.key.encode(),
        "blob": blob,
        "size": stored.size,
        "etag": stored.etag,
        "modified": stored.modified,
        "content_type": stored.content_type,
        "metadata": stored.metadata,
        "headers": stored.headers,
    }


def _object(row: Row[Any]) -> StoredObject:
    its = row._mapping
    return StoredObject(
        bucket=its["bucket"],
        key=its["key"].decode(),
        size=its["size"],
        etag=its["etag"],
        modified=its["modified"],
        content_type=its["content_type"],
        metadata=its["metadata"],
        headers=its["headers"],
    )


# ── multipart uploads ─────────────────────────────────────────────────────────────────────────


def start_upload(connection: Connection, account_id: str, upload: Upload) -> None:
    """`NotFound` without the bucket."""
    _check(connection, account_id, upload.bucket)
    row = {
        "account_id": account_id,
        "upload_id": upload.upload_id,
        "bucket": upload.bucket,
        "key": upload.key.encode(),
        "started_at": upload.started_at,
        "content_type": upload.content_type,
        "metadata": upload.metadata,
        "headers": upload.headers,
    }
    connection.execute(uploads.insert(), row)


def find_upload(connection: Connection, account_id: str, upload_id: str) -> Upload:
    """`NotFound`."""
    query = select(uploads).where(*_of_upload(uploads, account_id, upload_id))
    row = connection.execute(query).first()
    if row is None:
        raise errors.NotFound("upload", upload_id)
    return _upload(row)


def list_uploads(connection: Connection, account_id: str, bucket: str, prefix: str) -> list[Upload]:
    """Those under way, by key and age."""
    _check(connection, account_id, bucket)
    query = select(uploads).where(*_in_bucket(uploads, account_id, bucket))
    query = query.order_by(uploads.c.key, uploads.c.started_at)
    found = [_upload(row) for row in connection.execute(query)]
    return [each for each in found if each.key.startswith(prefix)]


def put_part(connection: Connection, account_id: str, upload_id: str, part: Part) -> list[str]:
    """Keep it in place of the one of its number; that one's blob."""
    find_upload(connection, account_id, upload_id)
    where = (
        *_of_upload(upload_parts, account_id, upload_id),
        upload_parts.c.number == part.number,
    )
    freed = list(connection.scalars(select(upload_parts.c.blob).where(*where)))
    connection.execute(delete(upload_parts).where(*where))
    row = {
        "account_id": account_id,
        "upload_id": upload_id,
        "number": part.number,
        "size": part.size,
        "etag": part.etag,
        "modified": part.modified,
        "blob": part.blob,
    }
    connection.execute(upload_parts.insert(), row)
    return freed


def list_parts(connection: Connection, account_id: str, upload_id: str) -> list[Part]:
    """By number; `NotFound`."""
    find_upload(connection, account_id, upload_id)
    columns = (upload_parts.c[name] for name in ("number", "size", "etag", "modified", "blob"))
    query = select(*columns).where(*_of_upload(upload_parts, account_id, upload_id))
    rows = connection.execute(query.order_by(upload_parts.c.number))
    return [Part(**row._mapping) for row in rows]


def end_upload(
    connection: Connection,
    account_id: str,
    upload_id: str,
    stored: StoredObject | None,
    blob: str,
    replaces: str | None,
) -> list[str]:
    """Forget an upload; its parts' blobs, and the blob of an object that `stored` replaces."""
    find_upload(connection, account_id, upload_id)
    freed = _forget(connection, account_id, upload_id)
    if stored is not None:
        freed += put(connection, account_id, stored, blob, replaces)
    return freed


def _forget(connection: Connection, account_id: str, upload_id: str) -> list[str]:
    where = _of_upload(upload_parts, account_id, upload_id)
    freed = list(connection.scalars(select(upload_parts.c.blob).where(*where)))
    connection.execute(delete(upload_parts).where(*where))
    connection.execute(delete(uploads).where(*_of_upload(uploads, account_id, upload_id)))
    return freed


def _of_upload(table: Table, account_id: str, upload_id: str) -> tuple[Any, ...]:
    return table.c.account_id == account_id, table.c.upload_id == upload_id


def _upload(row: Row[Any]) -> Upload:
    its = row._mapping
    return Upload(
        upload_id=its["upload_id"],
        bucket=its["bucket"],
        key=its["key"].decode(),
        started_at=its["started_at"],
        content_type=its["content_type"],
        metadata=its["metadata"],
        headers=its["headers"],
    )


# ── all accounts ──────────────────────────────────────────────────────────────────────────────


def blobs_in_use(connection: Connection) -> set[str]:
    """Of objects and parts."""
    return set(connection.scalars(union_all(select(objects.c.blob), select(upload_parts.c.blob))))


def end_uploads_before(connection: Connection, before: float) -> list[str]:
    """Forget old uploads; their blobs."""
    query = select(uploads.c.account_id, uploads.c.upload_id).where(uploads.c.started_at < before)
    old = connection.execute(query).all()
    return [blob for row in old for blob in _forget(connection, row.account_id, row.upload_id)]
