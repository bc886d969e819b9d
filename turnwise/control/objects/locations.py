"""Where data lies: `s3://bucket/key`, `file:///path`, or a plain path. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

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
