"""A real S3 beside our own buckets, over boto3 (the extra `s3`). All calls block."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.objects import StoredObject


class RemoteS3:
    """Buckets at an endpoint, with the credentials that boto3 finds."""

    def __init__(self, endpoint_url: str) -> None:
        """Raises `InvalidInput` without boto3."""
        try:
            self._boto3 = importlib.import_module("boto3")
        except ImportError:
            raise errors.InvalidInput(
                "s3_endpoint_url",
                endpoint_url,
                "needs boto3",
                remedy="install the extra: pip install 'turnwise[s3]'",
            ) from None
        self._endpoint_url = endpoint_url
        self._lock = threading.Lock()
        self._made: Any = None

    def list(self, bucket: str, prefix: str, limit: int) -> list[StoredObject]:
        """Objects whose keys begin with the prefix, in order; `InvalidInput` beyond `limit`."""
        with _told(bucket):
            pages = self._client().get_paginator("list_objects_v2")
            listed = pages.paginate(Bucket=bucket, Prefix=prefix)
            entries = (each for page in listed for each in page.get("Contents", ()))
            found = [_object(bucket, each) for each in islice(entries, limit + 1)]
        if len(found) > limit:
            raise errors.InvalidInput(
                "uri", f"s3://{bucket}/{prefix}", f"are more than {limit} objects"
            )
        return found

    def download(self, stored: StoredObject, to: Path) -> None:
        """Write an object's content to a new file."""
        with _told(stored.bucket):
            self._client().download_file(stored.bucket, stored.key, str(to))

    def upload(self, file: Path, bucket: str, key: str) -> None:
        """Keep a file's content as an object."""
        with _told(bucket):
            self._client().upload_file(str(file), bucket, key)

    def check(self, bucket: str) -> None:
        """Raise unless the bucket is there and may be used."""
        with _told(bucket):
            self._client().head_bucket(Bucket=bucket)

    def _client(self) -> Any:
        """boto3's client, made by the first call: it reads files."""
        with self._lock:
            if self._made is None:
                self._made = self._boto3.client("s3", endpoint_url=self._endpoint_url)
            return self._made


def _object(bucket: str, entry: Any) -> StoredObject:
    return StoredObject(
        bucket=bucket,
        key=entry["Key"],
        size=entry["Size"],
        etag=entry["ETag"].strip('"'),
        modified=entry["LastModified"].timestamp(),
    )


@contextmanager
def _told(bucket: str) -> Iterator[None]:
    """Raise what boto3 says as ours; an error of the disk stays what it is."""
    boto = importlib.import_module("boto3.exceptions")
    core = importlib.import_module("botocore.exceptions")
    try:
        yield
    except core.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise errors.InvalidInput(
            "uri", f"s3://{bucket}", f"is refused by S3: {error}", remedy=_remedy(code)
        ) from None
    except (core.BotoCoreError, boto.Boto3Error) as error:
        raise errors.Unavailable(f"S3 cannot be asked for s3://{bucket}: {error}") from None


def _remedy(code: str) -> str:
    if code in ("404", "NoSuchBucket", "NoSuchKey"):
        return "check the names"
    return "check the server's AWS credentials and what they may do"
