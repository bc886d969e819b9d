"""S3 by the real clients: the AWS CLI, boto3's transfers, and plain HTTP with presigned URLs."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.wire.aws.clients.service import aws, client

MIB = 1 << 20


@pytest.fixture
def s3(env: dict[str, str]) -> Any:
    return client("s3", env)


@pytest.fixture
def bucket(s3: Any, request: pytest.FixtureRequest) -> str:
    """An empty bucket for one test."""
    name = "test-" + request.node.name.replace("_", "-").lower()[5:60].strip("-")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    return name


def test_the_aws_cli_copies_lists_syncs_and_removes(env: dict[str, str], tmp_path: Path):
    folder, back = tmp_path / "folder", tmp_path / "back"
    (folder / "in").mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"prompt": "go"}\n')
    (folder / "in/a b+ü.txt").write_text("odd")

    assert aws(env, "s3", "mb", "s3://cli-data") == "make_bucket: cli-data\n"
    aws(env, "s3", "cp", str(folder / "rows.jsonl"), "s3://cli-data/rows.jsonl")
    aws(env, "s3", "sync", str(folder), "s3://cli-data/synced/")
    listed = aws(env, "s3", "ls", "s3://cli-data", "--recursive")
    assert [line.split(maxsplit=3)[2:] for line in listed.splitlines()] == [
        ["17", "rows.jsonl"],
        ["3", "synced/in/a b+ü.txt"],
        ["17", "synced/rows.jsonl"],
    ]
    assert "PRE synced/" in aws(env, "s3", "ls", "s3://cli-data/")
    aws(env, "s3", "sync", "s3://cli-data/synced", str(back))
    assert (back / "in/a b+ü.txt").read_text() == "odd"
    aws(env, "s3", "rb", "s3://cli-data", "--force")
    assert "cli-data" not in aws(env, "s3", "ls")


def test_upload_file_sends_20_mb_in_parts_and_gets_them_back(s3: Any, bucket: str, tmp_path: Path):
    source, back = tmp_path / "big.bin", tmp_path / "back.bin"
    source.write_bytes(os.urandom(20 * MIB + 1))

    s3.upload_file(str(source), bucket, "models/big.bin", ExtraArgs={"Metadata": {"a": "1"}})
    s3.download_file(bucket, "models/big.bin", str(back))

    head = s3.head_object(Bucket=bucket, Key="models/big.bin")
    assert back.read_bytes() == source.read_bytes()
    assert (head["ContentLength"], head["Metadata"]) == (20 * MIB + 1, {"a": "1"})
    assert head["ETag"].endswith('-3"')
    middle = s3.get_object(Bucket=bucket, Key="models/big.bin", Range="bytes=10485755-10485764")
    assert middle["Body"].read() == source.read_bytes()[10485755:10485765]


def test_presigned_urls_work_without_a_client(s3: Any, bucket: str, env: dict[str, str]):
    at = {"Bucket": bucket, "Key": "folder/a b+ü.txt"}
    put = urllib.request.Request(
        s3.generate_presigned_url("put_object", Params=at), data=b"hello", method="PUT"
    )
    put.add_header("Content-Type", "")
    with urllib.request.urlopen(put, timeout=10) as answered:
        assert answered.status == 200
    url = s3.generate_presigned_url("get_object", Params=at)
    with urllib.request.urlopen(url, timeout=10) as answered:
        assert answered.read() == b"hello"
    from_cli = aws(env, "s3", "presign", f"s3://{bucket}/folder/a b+ü.txt").strip()
    with urllib.request.urlopen(from_cli, timeout=10) as answered:
        assert answered.read() == b"hello"


def test_a_bucket_is_found_made_and_filled_as_the_sagemaker_session_does(
    s3: Any, env: dict[str, str]
):
    """The calls with which the SDK makes sure of its output path, and what it reads of them."""
    sts = client("sts", env)
    account = sts.get_caller_identity()["Account"]
    name = f"as-sagemaker-does-{account}"
    with pytest.raises(s3.exceptions.ClientError) as missing:
        s3.head_bucket(Bucket=name)
    assert missing.value.response["Error"]["Message"] == "Not Found"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.head_bucket(Bucket=name, ExpectedBucketOwner=account)
    found = s3.list_objects_v2(Bucket=name, Prefix="output/", MaxKeys=1)
    assert "Contents" not in found
    s3.put_object(Bucket=name, Key="output/")
    assert s3.list_objects_v2(Bucket=name, Prefix="output/")["KeyCount"] == 1
    with pytest.raises(s3.exceptions.ClientError) as owner:
        s3.head_bucket(Bucket=name, ExpectedBucketOwner="123456789012")
    assert owner.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_bucket_may_be_called_like_a_path_of_the_data_plane(s3: Any):
    for name in ("sample", "update-reward"):
        s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        s3.put_object(Bucket=name, Key="k", Body=b"x")
        assert s3.get_object(Bucket=name, Key="k")["Body"].read() == b"x"
