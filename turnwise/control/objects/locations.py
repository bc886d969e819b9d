"""Where data lies: `s3://bucket/key`, `file:///path`, or a plain path. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from turnwise import errors
from turnwise.domain.objects import check_bucket_name

_S3, _FILE = "s3://", "file://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A parsed URI: a bucket and a key (or prefix, maybe empty), or a path on this machine."""

    bucket: str = ""
    key: str = ""
    path: Path | None = None

    def below(self, name: str) -> Location:
        """What lies under this one, taken as a folder, at a relative path."""
        if self.path is not None:
            return Location(path=self.path / name)
        folder = self.key if self.key.endswith("/") or not self.key else self.key + "/"
        return Location(bucket=self.bucket, key=folder + name)

    def __str__(self) -> str:
        return f"{_FILE}{self.path}" if self.path else f"{_S3}{self.bucket}/{self.key}"


def check_address(url: str, field: str, *, remedy: str = "use http://host:port") -> None:
    """Raise `InvalidInput` unless it is an address to call over HTTP, without a password in it."""
    try:
        parts = urlsplit(url)
        is_host = bool(parts.hostname) and parts.port != 0
        is_http = parts.scheme in ("http", "https") and is_host
    except ValueError:  # half an IPv6 address, a port past 65535
        is_http = False
    if not is_http:
        raise errors.InvalidInput(field, url, "is no HTTP address", remedy=remedy)
    if parts.username or parts.password:
        raise errors.InvalidInput(
            field,
            f"{parts.scheme}://...@{parts.hostname}",
            "holds a password, which would be shown",
            remedy="leave it out",
        )


def is_uri(text: str) -> bool:
    """Whether a setting names its data by a URI rather than by a path."""
    return text.startswith((_S3, _FILE))


def is_bucket(text: str) -> bool:
    """Whether a setting names its data in a bucket."""
    return text.startswith(_S3)


def parse_location(uri: str, field: str = "uri") -> Location:
    """Read a URI. Raises `InvalidInput` for `field`.

    >>> parse_location("s3://data/rows/train.jsonl").key
    'rows/train.jsonl'
    """
    if uri.startswith(_S3):
        bucket, _, key = uri.removeprefix(_S3).partition("/")
        try:
            check_bucket_name(bucket)
        except errors.InvalidInput as error:
            raise errors.InvalidInput(
                field, uri, f"names no bucket ({bucket!r})", remedy=error.remedy
            ) from None
        return Location(bucket=bucket, key=key)
    if uri.startswith(_FILE):
        path = unquote(uri.removeprefix(_FILE))
        if path.startswith("/") and "\0" not in path:
            return Location(path=Path(path))
    raise errors.InvalidInput(
        field, uri, "is no URI of data", remedy="use s3://bucket/key or file:///absolute/path"
    )
