"""Buckets and objects of an account, their files, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import SetClock
from turnwise import errors
from turnwise.control.objects.buckets import MAX_UPLOAD_AGE_S, Buckets
from turnwise.control.objects.locations import parse_location
from turnwise.control.objects.multipart import Multipart
from turnwise.domain.objects import (
    Listing,
    StoredObject,
    check_bucket_name,
    check_key,
    key_after,
    list_page,
)
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.storage.tables import objects
from turnwise.system import new_id

A, B = "acc_default", "acc_b"
ODD_KEYS = [
    "../../etc",
    "/lead",
    "a//b",
    "a/./b",
    "ü n i",
    "a+b",
    "a%2Fb",
    "a",
    "a/b",
    "a/",
    "\x01",
]


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "blobs")


@pytest.fixture
async def buckets(store: SqlStore, blobs: FolderBlobs) -> Buckets:
    made = Buckets(store, blobs, SetClock(), new_id)
    await made.create(A, "data")
    return made


def files_of(blobs: FolderBlobs) -> list[Path]:
    return [path for path in blobs.path("objects").rglob("*") if path.is_file()]


async def read(buckets: Buckets, key: str, account: str = A, bucket: str = "data") -> bytes:
    _, path = await buckets.get(account, bucket, key)
    return path.read_bytes()


# ── names ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    ["ab", "a" * 64, "Data", "a_b", "-ab", "ab-", ".ab", "a..b", "127.0.0.1", "a/b", "", "../etc"],
)
async def test_a_bucket_name_that_s3_would_refuse_is_refused(buckets: Buckets, name: str):
    with pytest.raises(errors.InvalidInput, match="is not a bucket name; use 3 to 63"):
        await buckets.create(A, name)


def test_names_that_s3_allows_are_allowed():
    for name in ("abc", "a" * 63, "sagemaker-us-west-2-000000000001", "a.b-c.1"):
        check_bucket_name(name)


@pytest.mark.parametrize("key", ["", "x" * 1025, "ü" * 513, "\ud800"])
async def test_a_key_that_cannot_be_kept_is_refused_and_leaves_no_file(
    buckets: Buckets, blobs: FolderBlobs, key: str
):
    with pytest.raises(errors.InvalidInput, match=r"^key: "):
        await buckets.put(A, "data", key, b"x")
    assert files_of(blobs) == []


def test_the_longest_key_is_kept():
    assert check_key("ü" * 512) == ("ü" * 512).encode()


# ── objects ───────────────────────────────────────────────────────────────────────────────────


async def test_an_object_comes_back_as_it_was_put(buckets: Buckets):
    put = await buckets.put(A, "data", "rows.csv", b"hello", "text/csv", {"origin": "here"})

    stored, path = await buckets.get(A, "data", "rows.csv")

    assert stored == put
    assert (stored.size, stored.content_type, stored.metadata) == (
        5,
        "text/csv",
        {"origin": "here"},
    )
    assert stored.etag == hashlib.md5(b"hello").hexdigest()
    assert path.read_bytes() == b"hello"


async def test_odd_keys_are_names_and_never_paths(buckets: Buckets, blobs: FolderBlobs):
    for key in ODD_KEYS:
        await buckets.put(A, "data", key, key.encode())

    assert [await read(buckets, key) for key in ODD_KEYS] == [key.encode() for key in ODD_KEYS]
    listed = [each.key for each in (await buckets.list(A, "data")).objects]
    assert listed == sorted(ODD_KEYS, key=str.encode)
    for file in files_of(blobs):
        assert file.parent.parent == blobs.path("objects")
        assert file.name.startswith("obj_")


async def test_putting_again_replaces_the_object_and_frees_its_file(
    buckets: Buckets, blobs: FolderBlobs
):
    await buckets.put(A, "data", "k", b"old", metadata={"a": "1"})
    await buckets.put(A, "data", "k", b"new")

    assert await read(buckets, "k") == b"new"
    assert (await buckets.head(A, "data", "k")).metadata == {}
    assert [file.read_bytes() for file in files_of(blobs)] == [b"new"]


async def test_deleting_frees_the_file_and_may_be_done_again(buckets: Buckets, blobs: FolderBlobs):
    await buckets.put(A, "data", "k", b"x")
    await buckets.delete(A, "data", "k", "never")
    await buckets.delete(A, "data", "k")

    assert files_of(blobs) == []
    with pytest.raises(errors.NotFound, match="object 'k' does not exist"):
        await buckets.get(A, "data", "k")


async def test_accounts_do_not_see_each_other(buckets: Buckets):
    await buckets.put(A, "data", "k", b"a's")
    for call in (
        lambda: buckets.get(B, "data", "k"),
        lambda: buckets.list(B, "data"),
        lambda: buckets.put(B, "data", "k", b"b's"),
        lambda: buckets.delete(B, "data", "k"),
        lambda: buckets.delete_bucket(B, "data"),
    ):
        with pytest.raises(errors.NotFound, match="bucket 'data' does not exist"):
            await call()
    assert not await buckets.exists(B, "data")

    await buckets.create(B, "data")  # the same name: another bucket
    await buckets.put(B, "data", "k", b"b's")
    assert (await read(buckets, "k"), await read(buckets, "k", B)) == (b"a's", b"b's")


async def test_a_bucket_is_made_once_and_removed_when_empty(buckets: Buckets):
    with pytest.raises(errors.Conflict, match="exists already"):
        await buckets.create(A, "data")
    await buckets.put(A, "data", "k", b"x")
    with pytest.raises(errors.Conflict, match="bucket 'data' is not empty"):
        await buckets.delete_bucket(A, "data")
    await buckets.delete(A, "data", "k")
    await buckets.delete_bucket(A, "data")
    assert list(await buckets.names(A)) == []


async def test_a_write_with_a_condition_replaces_only_what_it_names(
    buckets: Buckets, blobs: FolderBlobs
):
    first = await buckets.put(A, "data", "k", b"1", replaces="")
    for replaces in ("", "0" * 32):
        with pytest.raises(errors.Conflict, match="not the one that was to be replaced"):
            await buckets.put(A, "data", "k", b"2", replaces=replaces)
    await buckets.put(A, "data", "k", b"3", replaces=first.etag)

    assert [file.read_bytes() for file in files_of(blobs)] == [b"3"]


# ── listings ──────────────────────────────────────────────────────────────────────────────────


def objects_of(keys: set[str]) -> Callable[[bytes, bytes, int], list[StoredObject]]:
    found = [StoredObject("b", key, 0, "", 0.0) for key in sorted(keys, key=str.encode)]

    def fetch(low: bytes, high: bytes, count: int) -> list[StoredObject]:
        inside = [s for s in found if low <= s.key.encode() and (not high or s.key.encode() < high)]
        return inside[:count]

    return fetch


def as_s3_says(keys: set[str], prefix: str, delimiter: str) -> list[str]:
    """The whole listing, by its definition."""
    entries: list[str] = []
    for key in sorted(keys, key=str.encode):
        if key.startswith(prefix):
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entry = prefix + head + mark if mark else key
            if entry not in entries:
                entries.append(entry)
    return entries


KEYS = st.sets(st.text("ab/é\U0001f600", min_size=1, max_size=5), max_size=30)


@given(KEYS, st.text("ab/", max_size=2), st.sampled_from(["", "/", "b/", "é"]), st.integers(1, 5))
def test_pages_put_together_are_the_listing(
    keys: set[str], prefix: str, delimiter: str, limit: int
):
    entries, after = [], ""
    while True:
        page = list_page(
            objects_of(keys), prefix=prefix, delimiter=delimiter, after=after, limit=limit
        )
        here = [each.key for each in page.objects] + list(page.prefixes)
        assert len(here) <= limit
        entries += sorted(here, key=str.encode)
        if not page.next:
            break
        after = page.next
    assert entries == as_s3_says(keys, prefix, delimiter)


def test_a_page_reads_little_of_a_large_folder():
    keys = {f"big/{n:05d}" for n in range(20_000)} | {"zoo"}
    asked = 0
    inner = objects_of(keys)

    def fetch(low: bytes, high: bytes, count: int) -> list[StoredObject]:
        nonlocal asked
        asked += count
        return inner(low, high, count)

    page = list_page(fetch, prefix="", delimiter="/", after="", limit=1000)

    assert ([each.key for each in page.objects], page.prefixes) == (["zoo"], ["big/"])
    assert asked <= 1100


def test_the_key_after_a_prefix_follows_all_that_begin_with_it():
    for prefix in ("a", "a/", "é", "\U0010ffff"):
        assert (prefix + "\U0010ffff" * 9).encode() < key_after(prefix.encode())


async def test_the_store_pages_as_the_definition_says(buckets: Buckets):
    keys = {f"{folder}/{n}" for folder in "abc" for n in range(5)} | {"a", "d", "b-"}
    for key in keys:
        await buckets.put(A, "data", key, b"")
    for prefix, delimiter in (("", ""), ("", "/"), ("b", "/"), ("b/", ""), ("x", "/")):
        entries, after = [], ""
        while True:
            page = await buckets.list(A, "data", prefix, delimiter, after, 2)
            here = [each.key for each in page.objects] + list(page.prefixes)
            entries += sorted(here, key=str.encode)
            if not (after := page.next):
                break
        assert entries == as_s3_says(keys, prefix, delimiter), (prefix, delimiter)


async def test_a_listing_begins_after_a_key(buckets: Buckets):
    for key in ("a", "b/1", "b/2", "c"):
        await buckets.put(A, "data", key, b"")
    assert keys_of(await buckets.list(A, "data", after="b/1")) == ["b/2", "c"]
    assert keys_of(await buckets.list(A, "data", delimiter="/", after="b/")) == ["c"]
    nothing = await buckets.list(A, "data", limit=0)
    assert (list(nothing.objects), nothing.next) == ([], "")


async def test_a_hundred_thousand_objects_page_quickly(tmp_path: Path, blobs: FolderBlobs):
    store = SqlStore.open(tmp_path / "turnwise.db")
    buckets = Buckets(store, blobs, SetClock(), new_id)
    await buckets.create(A, "data")
    row = {"account_id": A, "bucket": "data", "blob": "obj_x", "size": 1, "etag": "e"}
    row |= {"modified": 1.0, "content_type": "t", "metadata": {}, "headers": {}}
    keys = [f"{n % 100:03d}/{n:06d}".encode() for n in range(100_000)]
    with store._engine.begin() as connection:
        connection.execute(objects.insert(), [row | {"key": key} for key in keys])

    began = time.process_time()
    middle = await buckets.list(A, "data", after="050/050050")
    folded = await buckets.list(A, "data", delimiter="/")
    seconds = time.process_time() - began

    assert keys_of(middle)[0] == "050/050150"
    assert len(folded.prefixes) == 100
    assert seconds < 1.0  # it takes about 0.1
    await store.close()


def keys_of(page: Listing) -> list[str]:
    return [each.key for each in page.objects]


# ── views ─────────────────────────────────────────────────────────────────────────────────────


class Shelf:
    """Another room's files as a bucket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def list(self, account_id: str, prefix: str) -> list[StoredObject]:
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.txt")]
        return [StoredObject("shelf", n, 1, "e", 1.0) for n in names if n.startswith(prefix)]

    async def path(self, account_id: str, key: str) -> Path:
        return self.folder / key


async def test_a_view_is_a_bucket_that_can_only_be_read(buckets: Buckets, tmp_path: Path):
    (tmp_path / "shelf/in").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "in/c.txt"):
        (tmp_path / "shelf" / name).write_text(name)
    buckets.mount("shelf", Shelf(tmp_path / "shelf"))

    page = await buckets.list(B, "shelf", delimiter="/")
    assert (keys_of(page), page.prefixes) == (["a.txt", "b.txt"], ["in/"])
    assert keys_of(await buckets.list(B, "shelf", after="a.txt", limit=1)) == ["b.txt"]
    assert await read(buckets, "in/c.txt", B, "shelf") == b"in/c.txt"
    assert list(await buckets.names(A)) == ["data", "shelf"]
    for missing in ("in", "a", "a.txt/"):
        with pytest.raises(errors.NotFound):
            await buckets.get(B, "shelf", missing)
    for call in (
        lambda: buckets.put(A, "shelf", "a.txt", b"mine"),
        lambda: buckets.delete(A, "shelf", "a.txt"),
        lambda: buckets.delete_bucket(A, "shelf"),
        lambda: Multipart(buckets).start(A, "shelf", "a.txt"),
    ):
        with pytest.raises(errors.Denied, match="bucket 'shelf' is read-only"):
            await call()
    with pytest.raises(errors.Conflict):
        await buckets.create(A, "shelf")


# ── crashes and full disks ────────────────────────────────────────────────────────────────────


async def test_a_file_whose_row_was_never_written_is_swept(buckets: Buckets, blobs: FolderBlobs):
    await buckets.put(A, "data", "k", b"kept")
    upload = await Multipart(buckets).start(A, "data", "big")
    await Multipart(buckets).put_part(A, upload, 1, [b"part"])
    await buckets.content.write([b"killed before the row"])
    half = blobs.path("objects/zz/obj_half")  # killed while it was written
    half.write_bytes(b"ha")

    await buckets.recover()

    assert sorted(file.read_bytes() for file in files_of(blobs)) == [b"kept", b"part"]
    assert await read(buckets, "k") == b"kept"


async def test_an_upload_that_nobody_ends_is_given_up_after_a_week(
    buckets: Buckets, blobs: FolderBlobs
):
    multipart, clock = Multipart(buckets), buckets.clock
    old = await multipart.start(A, "data", "old")
    await multipart.put_part(A, old, 1, [b"old"])
    clock.at += MAX_UPLOAD_AGE_S - 5
    young = await multipart.start(A, "data", "young")
    await multipart.put_part(A, young, 1, [b"young"])
    clock.at += 10

    await buckets.recover()

    assert [each.key for each in await multipart.listed(A, "data")] == ["young"]
    assert [file.read_bytes() for file in files_of(blobs)] == [b"young"]


async def test_a_full_disk_keeps_the_former_object_and_no_half_of_the_new_one(
    buckets: Buckets, blobs: FolderBlobs, monkeypatch: pytest.MonkeyPatch
):
    await buckets.put(A, "data", "k", b"former")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StorageFull, match="nothing of this object was kept; make room"):
        await buckets.put(A, "data", "k", b"x" * 1000)
    monkeypatch.undo()

    assert [file.read_bytes() for file in files_of(blobs)] == [b"former"]
    assert await read(buckets, "k") == b"former"


async def test_an_object_that_the_store_refuses_leaves_no_file(
    buckets: Buckets, blobs: FolderBlobs
):
    with pytest.raises(errors.NotFound, match="bucket 'nowhere' does not exist"):
        await buckets.put(A, "nowhere", "k", b"x")
    assert files_of(blobs) == []


# ── multipart uploads ─────────────────────────────────────────────────────────────────────────


async def test_parts_are_joined_in_their_order_and_freed(buckets: Buckets, blobs: FolderBlobs):
    multipart = Multipart(buckets)
    upload = await multipart.start(A, "data", "big", "text/plain", {"a": "1"})
    for number, data in ((2, b"two"), (1, b"first try"), (1, b"one"), (3, b"left out")):
        await multipart.put_part(A, upload, number, [data])
    one, two, _ = await multipart.parts(A, upload)

    stored = await multipart.complete(A, upload, [one, two])

    digests = hashlib.md5(b"one").digest() + hashlib.md5(b"two").digest()
    assert stored.etag == hashlib.md5(digests).hexdigest() + "-2"
    assert (stored.size, stored.content_type, stored.metadata) == (6, "text/plain", {"a": "1"})
    assert [file.read_bytes() for file in files_of(blobs)] == [b"onetwo"]
    with pytest.raises(errors.Conflict, match="has changed while it was being completed"):
        await multipart.complete(A, upload, [one, two])
    with pytest.raises(errors.NotFound, match="upload"):
        await multipart.find(A, "data", "big", upload.upload_id)
    assert [file.read_bytes() for file in files_of(blobs)] == [b"onetwo"]


async def test_an_upload_belongs_to_its_account_and_key(buckets: Buckets):
    multipart = Multipart(buckets)
    upload = await multipart.start(A, "data", "big")
    for account, key in ((B, "big"), (A, "other")):
        with pytest.raises(errors.NotFound, match="upload"):
            await multipart.find(account, "data", key, upload.upload_id)
    with pytest.raises(errors.Conflict, match="not empty"):
        await buckets.delete_bucket(A, "data")
    await multipart.abort(A, upload)
    await buckets.delete_bucket(A, "data")


# ── to and from files ─────────────────────────────────────────────────────────────────────────


async def test_a_prefix_is_downloaded_as_a_folder_and_a_key_as_a_file(buckets: Buckets):
    for key in ("rows/a.jsonl", "rows/in/b.jsonl", "rows/", "rows-2/c.jsonl", "rows"):
        await buckets.put(A, "data", key, key.encode())
    await buckets.delete(A, "data", "rows")

    folder = await buckets.download(A, "s3://data/rows")
    file = await buckets.download(A, "s3://data/rows/a.jsonl")

    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {"a.jsonl", "in/b.jsonl"}
    assert (file.name, file.read_bytes()) == ("a.jsonl", b"rows/a.jsonl")
    assert await buckets.download(A, "s3://data/rows/") == folder
    # without copying: one file with two names
    assert file.stat().st_ino == (await buckets.get(A, "data", "rows/a.jsonl"))[1].stat().st_ino

    await buckets.put(A, "data", "rows/a.jsonl", b"changed")
    assert file.read_bytes() == b"rows/a.jsonl"  # whoever reads it goes on reading it
    assert (await buckets.download(A, "s3://data/rows/a.jsonl")).read_bytes() == b"changed"


@pytest.mark.parametrize("keys", [["p/../../x"], ["p/a", "p/a/b"], ["p//a"], ["p/" + "n" * 256]])
async def test_keys_that_cannot_be_files_are_not_downloaded(
    buckets: Buckets, tmp_path: Path, keys: list[str]
):
    for key in keys:
        await buckets.put(A, "data", key, b"x")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(errors.InvalidInput, match="cannot be a folder of files"):
        await buckets.download(A, "s3://data/p/")
    assert set(tmp_path.rglob("*")) == before


async def test_a_folder_is_uploaded_and_comes_back(buckets: Buckets, tmp_path: Path):
    source = tmp_path / "source"
    (source / "in").mkdir(parents=True)
    (source / "a.bin").write_bytes(b"\0" * 3_000_000)
    (source / "in/b").write_bytes(b"b")

    await buckets.upload(A, source, "s3://data/out/run")
    await buckets.upload(A, source, f"file://{tmp_path}/copy")

    assert keys_of(await buckets.list(A, "data")) == ["out/run/a.bin", "out/run/in/b"]
    assert (tmp_path / "copy/in/b").read_bytes() == b"b"
    assert (await buckets.download(A, "s3://data/out/run/a.bin")).stat().st_size == 3_000_000


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://nowhere/x", "is in bucket 'nowhere', which does not exist here; create it, or set"),
        ("s3://data/none", "is neither a file nor a folder of files"),
        ("s3://X/y", "names no bucket \\('X'\\); use 3 to 63"),
        ("s3:///y", "names no bucket"),
        ("file://host/x", "is no URI of data; use s3://bucket/key or file:///absolute/path"),
        ("http://here/x", "is no URI of data"),
        ("file:///no/such", "is not there"),
    ],
)
async def test_a_uri_that_leads_nowhere_is_refused(buckets: Buckets, uri: str, message: str):
    with pytest.raises(errors.InvalidInput, match=message):
        await buckets.download(A, uri)


async def test_no_file_uri_leads_into_the_servers_own_data(
    store: SqlStore, blobs: FolderBlobs, tmp_path: Path
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/admin.key").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    buckets = Buckets(store, blobs, SetClock(), new_id, private=(tmp_path / "data").resolve())
    for uri in ("data/admin.key", "data", "link/admin.key", "x/../data/admin.key"):
        for call in (
            lambda uri: buckets.download(A, uri),
            lambda uri: buckets.transfer.files(A, parse_location(uri)),
            lambda uri: buckets.upload(A, Path(__file__).parent, uri),
        ):
            with pytest.raises(errors.InvalidInput, match="leads into the server's own data"):
                await call(f"file://{tmp_path}/{uri}")


# ── a real S3 beside ──────────────────────────────────────────────────────────────────────────


class Elsewhere:
    """A real S3 with these objects."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.downloads: list[str] = []

    def list(self, bucket: str, prefix: str, limit: int) -> list[StoredObject]:
        return [
            StoredObject(bucket, key, len(data), hashlib.md5(data).hexdigest(), 0.0)
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        ]

    def download(self, stored: StoredObject, to: Path) -> None:
        self.downloads.append(stored.key)
        to.write_bytes(self.objects[stored.key])

    def upload(self, file: Path, bucket: str, key: str) -> None:
        self.objects[key] = file.read_bytes()

    def check(self, bucket: str) -> None:
        raise AssertionError


@pytest.fixture
async def elsewhere(store: SqlStore, blobs: FolderBlobs) -> tuple[Buckets, Elsewhere]:
    remote = Elsewhere({"rows/a.csv": b"a", "rows/b.csv": b"b", "rows.csv": b"c"})
    return Buckets(store, blobs, SetClock(), new_id, remote=remote), remote


async def test_buckets_that_are_not_here_are_looked_for_in_a_real_s3(
    elsewhere: tuple[Buckets, Elsewhere], tmp_path: Path
):
    buckets, remote = elsewhere
    for _ in range(2):
        files = await buckets.transfer.files(A, parse_location("s3://theirs/rows"))
        assert [(f.name, f.relative, f.path.read_bytes()) for f in files] == [
            ("s3://theirs/rows/a.csv", "a.csv", b"a"),
            ("s3://theirs/rows/b.csv", "b.csv", b"b"),
        ]
    assert remote.downloads == ["rows/a.csv", "rows/b.csv"]  # once

    remote.objects["rows/a.csv"] = b"changed"
    (file, _) = await buckets.transfer.files(A, parse_location("s3://theirs/rows/"))
    assert file.path.read_bytes() == b"changed"

    (tmp_path / "out").mkdir()
    (tmp_path / "out/f").write_bytes(b"f")
    await buckets.upload(A, tmp_path / "out", "s3://theirs/put")
    assert remote.objects["put/f"] == b"f"


async def test_an_own_bucket_goes_before_one_elsewhere(elsewhere: tuple[Buckets, Elsewhere]):
    buckets, remote = elsewhere
    await buckets.create(A, "theirs")
    await buckets.put(A, "theirs", "rows.csv", b"ours")
    assert (await buckets.download(A, "s3://theirs/rows.csv")).read_bytes() == b"ours"
    assert remote.downloads == []


def test_an_object_is_plain_data():
    stored = StoredObject("b", "k", 1, "e", 2.0, "t", {"m": "1"})
    assert replace(stored, key="l").key == "l"
