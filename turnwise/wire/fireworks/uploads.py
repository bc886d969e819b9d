"""Files that come in and go out: by multipart forms, and by signed addresses that need no key.

A signed address holds a token of `access.links`, which is good for one file of one resource, of one
size, and for an hour. Whoever has the address may use it, with the rights of the key that asked.

    PUT  {server}/v1/signed/{account}/{collection}/{id}/{file}?size=134&token=...
    GET  {server}/v1/signed/{account}/{collection}/{id}/{file}?token=...
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from email.message import Message
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlencode

from fastapi import Request

from turnwise import errors
from turnwise.wire.fireworks.calls import Call, FireworksRooms, call_of
from turnwise.wire.fireworks.faults import Code, Refused
from turnwise.wire.fireworks.fields import Fields

SIGNED = "/v1/signed"
EXPIRES_S = 3600.0

#: Of a form, as the service's documentation has it.
MAX_FORM_BYTES = 150 * 1024 * 1024
#: Of a file that is put at a signed address.
MAX_FILE_BYTES = 1024 * 1024 * 1024

_BLANK = b"\r\n\r\n"
#: Longest head of a form's part: reading one takes time that grows with its square.
_MAX_HEAD = 8192
_PIECE = 1 << 20
_RANGE = "x-goog-content-length-range"
_FILE = re.compile(r"[^/\\\x00-\x1f]{1,200}")


# ── signed addresses ──────────────────────────────────────────────────────────────────────────


def upload_urls(
    rooms: FireworksRooms, call: Call, collection: str, id: str, given: Mapping[str, object]
) -> dict[str, str]:
    """Addresses to put files at, by their names exactly as asked, from `filenameToSize`."""
    sizes = given.get("filenameToSize")
    if not isinstance(sizes, Mapping) or not sizes:
        raise errors.InvalidInput(
            "filename_to_size", sizes, "names no files", remedy='send {"rows.jsonl": "134"}'
        )
    wanted = Fields(sizes)
    urls = {}
    for name in sizes:
        size = wanted.whole(name)
        if not _FILE.fullmatch(name) or name in (".", ".."):
            raise errors.InvalidInput("filename_to_size", name, "is not the name of a file")
        if not 1 <= size <= MAX_FILE_BYTES:
            raise errors.InvalidInput(
                f"filename_to_size[{name}]",
                size,
                "is not a size that is taken",
                remedy=f"send files of 1 to {MAX_FILE_BYTES} bytes",
            )
        urls[name] = _url(rooms, call, f"{collection}/{id}", name, size)
    return urls


def download_url(rooms: FireworksRooms, call: Call, collection: str, id: str, name: str) -> str:
    """An address to get a file at."""
    return _url(rooms, call, f"{collection}/{id}", name, None)


def _url(rooms: FireworksRooms, call: Call, resource: str, name: str, size: int | None) -> str:
    key = call.principal.access_key_id
    if not key:
        raise Refused(
            Code.FAILED_PRECONDITION, "this key is too old to sign addresses; make a new one"
        )
    token = rooms.links.make(_purpose(call.account, resource, name, size), key, expires_s=EXPIRES_S)
    query = {} if size is None else {"size": str(size)}
    path = f"{SIGNED}/{call.account}/{resource}/{quote(name)}"
    return f"{rooms.url}{path}?{urlencode(query | {'token': token})}"


def _purpose(account: str, resource: str, name: str, size: int | None) -> str:
    verb = "download" if size is None else f"upload of {size} bytes"
    return f"fireworks {verb}: accounts/{account}/{resource} {name}"


async def signed_call(rooms: FireworksRooms, request: Request, size: int | None) -> Call:
    """Whoever asked for the address that is used. Raises `Refused`."""
    path = request.path_params
    purpose = _purpose(path["account"], f"{path['collection']}/{path['id']}", path["name"], size)
    try:
        grant = rooms.links.read(purpose, request.query_params.get("token", ""))
        call = await call_of(rooms, await rooms.holder(grant.access_key_id))
    except errors.Unauthenticated:
        raise Refused(
            Code.UNAUTHENTICATED,
            "this address was not given out by this server for this file and size, or has expired; "
            "ask for a new one",
        ) from None
    request.state.principal = call.principal  # for the audit trail
    if call.account != path["account"]:
        raise errors.NotFound("account", path["account"])
    return call


def announced_size(request: Request) -> int:
    """The size that a signed address is for. Raises `InvalidInput`."""
    size = request.query_params.get("size", "")
    if not re.fullmatch(r"[0-9]{1,12}", size):
        raise errors.InvalidInput("size", size, "is not a number of bytes")
    return int(size)


def check_range(request: Request, size: int) -> None:
    """Raise unless the client says that it sends exactly the announced size."""
    given = request.headers.get(_RANGE, "")
    if given.replace(" ", "") != f"{size},{size}":
        raise errors.InvalidInput(
            "X-Goog-Content-Length-Range",
            given,
            "is not what was announced",
            remedy=f"{size},{size}",
        )
    length = request.headers.get("content-length", str(size))
    if length != str(size):
        raise _wrong_size(length, size)


async def exactly(request: Request, size: int) -> AsyncIterator[bytes]:
    """A body of that many bytes. Raises `InvalidInput` for one of more or fewer."""
    came = 0
    async for piece in request.stream():
        came += len(piece)
        if came > size:
            raise _wrong_size(f"more than {size}", size)
        if piece:
            yield piece
    if came != size:
        raise _wrong_size(str(came), size)


def _wrong_size(came: str, size: int) -> errors.InvalidInput:
    return errors.InvalidInput(
        "body", f"{came} bytes", f"is not the file that was announced, of {size} bytes"
    )


# ── content ───────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def spooled(pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[Path]:
    """What comes in pieces as a file, which is gone after the block."""
    with tempfile.NamedTemporaryFile(prefix="turnwise-upload-") as file:
        size = 0
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise errors.InvalidInput("body", f"{size} bytes", f"is larger than {limit} bytes")
            file.write(piece)
        file.flush()
        yield Path(file.name)


def form_file(form: Path, content_type: str, to: Path) -> str:
    """Write the content of a multipart form's part `file` to a file; the name it has. Blocks.

    https://www.rfc-editor.org/rfc/rfc7578
    """
    boundary = _parameter(content_type, "boundary")
    if not content_type.lower().startswith("multipart/form-data") or not boundary:
        raise errors.InvalidInput(
            "Content-Type", content_type, "is not a form", remedy="send multipart/form-data"
        )
    mark = b"--" + boundary.encode("latin-1", "replace")
    with form.open("rb") as opened, _mapped(opened) as body:
        at = body.find(mark)
        while at >= 0 and (blank := body.find(_BLANK, at, at + len(mark) + _MAX_HEAD)) >= 0:
            begin = blank + len(_BLANK)
            end = body.find(b"\r\n" + mark, begin)
            if end < 0:
                break
            disposition = _disposition(body[at + len(mark) : blank])
            if _parameter(disposition, "name") == "file":
                _write(body, begin, end, to)
                return _parameter(disposition, "filename")
            at = end + 2
    raise errors.InvalidInput("file", None, "is not in the form", remedy="send a part named file")


def _mapped(opened: BinaryIO) -> mmap.mmap:
    if os.fstat(opened.fileno()).st_size == 0:
        raise errors.InvalidInput("body", "", "is empty", remedy="send multipart/form-data")
    return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _disposition(head: bytes) -> str:
    """The Content-Disposition of a part, by its head."""
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-disposition":
            return value.strip()
    return ""


def _parameter(header: str, name: str) -> str:
    """A parameter of a header's value; "" where there is none."""
    message = Message()
    message["x"] = header
    found = message.get_param(name, "", header="x")
    return found if isinstance(found, str) else found[2]


def _write(body: mmap.mmap, begin: int, end: int, to: Path) -> None:
    with to.open("wb") as file:
        for place in range(begin, end, _PIECE):
            file.write(body[place : min(end, place + _PIECE)])
