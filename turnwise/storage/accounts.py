"""Accounts and keys: functions on an open connection."""

from __future__ import annotations

from sqlalchemy import Connection, update
from sqlalchemy.exc import IntegrityError

from turnwise import errors
from turnwise.domain.access import OPERATORS, Account, Key
from turnwise.storage.rows import from_row, from_rows, select_nouns, to_row
from turnwise.storage.tables import accounts, keys

# Readable in an ARN, and no real AWS account: those do not begin with zeros.
_DEFAULT = Account(account_id=OPERATORS, slug="default", number="000000000001")


def default(connection: Connection) -> Account:
    """The account "default", made if it is not there."""
    row = connection.execute(select_nouns(Account, accounts.c.slug == _DEFAULT.slug)).first()
    if row is not None:
        return from_row(Account, row)
    connection.execute(accounts.insert(), to_row(_DEFAULT))
    return _DEFAULT


def create(connection: Connection, account: Account) -> Account:
    """Insert; `Conflict` if its slug or number is taken."""
    try:
        connection.execute(accounts.insert(), to_row(account))
    except IntegrityError:
        raise errors.Conflict(f"account {account.slug!r} exists already") from None
    return account


def find(connection: Connection, account_id: str) -> Account:
    """`NotFound`."""
    row = connection.execute(select_nouns(Account, accounts.c.account_id == account_id)).first()
    if row is None:
        raise errors.NotFound("account", account_id)
    return from_row(Account, row)


def every(connection: Connection) -> list[Account]:
    """All accounts, by number."""
    query = select_nouns(Account).order_by(accounts.c.number)
    return from_rows(Account, connection.execute(query).all())


def add_key(connection: Connection, key: Key) -> None:
    """Insert a key."""
    connection.execute(keys.insert(), to_row(key))


def key_by_sha256(connection: Connection, sha256: str) -> Key:
    """`NotFound`."""
    row = connection.execute(select_nouns(Key, keys.c.sha256 == sha256)).first()
    if row is None:
        raise errors.NotFound("key", sha256)
    return from_row(Key, row)


def key_by_access_key_id(connection: Connection, access_key_id: str) -> Key:
    """`NotFound`. A revoked key is found too."""
    row = connection.execute(select_nouns(Key, keys.c.access_key_id == access_key_id)).first()
    if row is None or not access_key_id:
        raise errors.NotFound("access key", access_key_id)
    return from_row(Key, row)


def list_keys(connection: Connection, account_id: str) -> list[Key]:
    """Oldest first."""
    query = select_nouns(Key, keys.c.account_id == account_id)
    query = query.order_by(keys.c.created_at, keys.c.key_id)
    return from_rows(Key, connection.execute(query).all())


def seal_key(connection: Connection, key: Key) -> None:
    """Give a key that has none the pair with which it verifies signatures."""
    values = {"access_key_id": key.access_key_id, "sealed": key.sealed}
    connection.execute(update(keys).where(keys.c.key_id == key.key_id).values(values))


def revoke_key(connection: Connection, account_id: str, key_id: str, now: float) -> Key:
    """Set `revoked_at` once; `NotFound`."""
    its = (keys.c.key_id == key_id, keys.c.account_id == account_id)
    connection.execute(update(keys).where(*its, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    row = connection.execute(select_nouns(Key, *its)).first()
    if row is None:
        raise errors.NotFound("key", key_id)
    return from_row(Key, row)
