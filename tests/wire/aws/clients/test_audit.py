"""The audit trail as real clients see it: boto3's cloudtrail, the data plane, our command."""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.wire.aws.clients.service import Server, client, run_python, until

JOB = "AWS::SageMaker::Job"


def files_of(folder: Path) -> list[dict[str, Any]]:
    """All records that a trail has delivered, in order."""
    found = sorted(folder.glob("AWSLogs/*/CloudTrail/us-west-2/*/*/*/*.json.gz"))
    pages = [json.loads(gzip.decompress(file.read_bytes())) for file in found]
    records = [record for page in pages for record in page["Records"]]
    return sorted(records, key=lambda record: record["eventTime"])


@pytest.fixture(scope="module")
def cloudtrail(env: dict[str, str]) -> Any:
    return client("cloudtrail", env)


@pytest.fixture
def trail(server: Server, tmp_path: Path) -> Iterator[str]:
    """A trail that logs to a folder."""
    name = f"trail-{time.monotonic_ns()}"
    server.cli("audit", "trail", "create", name, "--folder", str(tmp_path / "trail"))
    yield name
    server.cli("audit", "trail", "delete", name)


def test_calls_of_both_doors_show_up_in_the_event_history(
    server: Server, env: dict[str, str], cloudtrail: Any
) -> None:
    client("sts", env).get_caller_identity()
    server.call("GET", "/jobs")
    events = cloudtrail.lookup_events()["Events"]
    names = [event["EventName"] for event in events]
    assert {"GetCallerIdentity", "ListJobs"} <= set(names)

    event = events[names.index("GetCallerIdentity")]
    record = json.loads(event["CloudTrailEvent"])
    assert event["Username"] == "admin"
    assert event["AccessKeyId"] == env["AWS_ACCESS_KEY_ID"]
    assert event["EventSource"] == record["eventSource"] == "sts.amazonaws.com"
    assert (event["ReadOnly"], record["readOnly"]) == ("true", True)
    assert record["userIdentity"]["arn"] == "arn:aws:iam::000000000001:user/admin"
    assert record["sourceIPAddress"] == "127.0.0.1"
    assert record["userAgent"].startswith("Boto3/")
    assert record["eventType"] == "AwsApiCall"
    assert record["managementEvent"] is True
    assert abs(event["EventTime"] - datetime.now(UTC)) < timedelta(minutes=1)


def test_the_history_is_searched_by_attributes_and_read_by_pages(
    env: dict[str, str], cloudtrail: Any
) -> None:
    for _ in range(3):
        client("sts", env).get_caller_identity()
    wanted = [{"AttributeKey": "EventName", "AttributeValue": "GetCallerIdentity"}]
    pages = cloudtrail.get_paginator("lookup_events").paginate(
        LookupAttributes=wanted, PaginationConfig={"PageSize": 2}
    )
    found = [event for page in pages for event in page["Events"]]
    assert len(found) >= 3
    assert len({event["EventId"] for event in found}) == len(found)
    assert {event["EventName"] for event in found} == {"GetCallerIdentity"}
    times = [event["EventTime"] for event in found]
    assert times == sorted(times, reverse=True)

    by_id = [{"AttributeKey": "EventId", "AttributeValue": found[0]["EventId"]}]
    assert cloudtrail.lookup_events(LookupAttributes=by_id)["Events"] == [found[0]]
    nobody = [{"AttributeKey": "Username", "AttributeValue": "nobody"}]
    assert cloudtrail.lookup_events(LookupAttributes=nobody)["Events"] == []
    with pytest.raises(ClientError, match="InvalidNextTokenException"):
        cloudtrail.lookup_events(NextToken="nonsense")


def test_a_refused_call_is_on_record_and_no_secret_is(server: Server, env: dict[str, str]) -> None:
    key = server.call("POST", "/keys", {"name": "reader", "actions": ["read"]})
    reader = env | {
        "AWS_ACCESS_KEY_ID": key["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": key["secret"],
    }
    with pytest.raises(ClientError, match="AccessDenied"):
        client("cloudtrail", reader).start_logging(Name="nothing")

    found = server.cli("audit", "search", "--event-name", "StartLogging", "--json").stdout
    record = json.loads(found)[0]
    assert record["errorCode"] == "AccessDeniedException"
    assert record["userIdentity"]["userName"] == "reader"
    assert record["requestParameters"] == {"name": "nothing"}
    assert record["responseElements"] is None

    everything = server.cli("audit", "search", "--limit", "1000", "--json").stdout
    assert key["secret"] not in everything
    assert "CreateKey" in everything


def test_a_call_with_a_wrong_signature_is_in_the_servers_log_alone(
    server: Server, env: dict[str, str], cloudtrail: Any
) -> None:
    before = cloudtrail.lookup_events()["Events"]
    with pytest.raises(ClientError, match=r"InvalidSignature|SignatureDoesNotMatch"):
        client("cloudtrail", env | {"AWS_SECRET_ACCESS_KEY": "wrong"}).list_trails()
    after = cloudtrail.lookup_events()["Events"]
    assert [e["EventName"] for e in after[: len(after) - len(before)]].count("ListTrails") == 0
    assert env["AWS_ACCESS_KEY_ID"] in server.log.read_text()


def test_a_trail_delivers_what_happens_while_it_logs(
    server: Server, env: dict[str, str], cloudtrail: Any, trail: str, tmp_path: Path
) -> None:
    client("sts", env).get_caller_identity()
    cloudtrail.stop_logging(Name=trail)
    client("sts", env).get_caller_identity()
    records = until(lambda: files_of(tmp_path / "trail"))
    names = [record["eventName"] for record in records]
    assert names.count("GetCallerIdentity") == 1
    assert names.count("StopLogging") == 0

    status = cloudtrail.get_trail_status(Name=trail)
    assert status["IsLogging"] is False
    assert "LatestDeliveryError" not in status
    assert status["LatestDeliveryTime"] <= datetime.now(UTC)
    described = cloudtrail.describe_trails()["trailList"]
    assert trail in [each["Name"] for each in described]


def test_a_trail_delivers_to_a_bucket(env: dict[str, str], cloudtrail: Any) -> None:
    s3 = client("s3", env)
    s3.create_bucket(
        Bucket="audit-logs", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    made = cloudtrail.create_trail(Name="to-bucket", S3BucketName="audit-logs", S3KeyPrefix="p")
    assert made["TrailARN"].endswith(":trail/to-bucket")
    cloudtrail.start_logging(Name=made["TrailARN"])
    client("sts", env).get_caller_identity()
    cloudtrail.stop_logging(Name="to-bucket")
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket="audit-logs")["Contents"]]
    assert all(key.startswith("p/AWSLogs/000000000001/CloudTrail/us-west-2/") for key in keys)
    bodies = [s3.get_object(Bucket="audit-logs", Key=key)["Body"].read() for key in keys]
    pages = [json.loads(gzip.decompress(body))["Records"] for body in bodies]
    names = [record["eventName"] for page in pages for record in page]
    assert names.count("GetCallerIdentity") == 1
    # Objects are data events, which this trail does not select; the bucket's creation came before.
    assert {"PutObject", "GetObject", "CreateBucket"}.isdisjoint(names)
    cloudtrail.delete_trail(Name="to-bucket")
    found = cloudtrail.lookup_events(
        LookupAttributes=[{"AttributeKey": "ResourceName", "AttributeValue": "to-bucket"}]
    )["Events"]
    assert {"CreateTrail", "StopLogging", "DeleteTrail"} <= {each["EventName"] for each in found}


def test_a_sample_call_is_recorded_only_once_it_is_selected(
    server: Server, env: dict[str, str], cloudtrail: Any, trail: str, tmp_path: Path
) -> None:
    runtime = client("sagemakerjobruntime", env)
    arn = "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/not-there"
    about = {"JobArn": arn, "TrajectoryId": "rollout_x"}

    def sample() -> None:
        with pytest.raises(ClientError):
            runtime.sample(**about, Body=b'{"messages": []}')

    sample()
    advanced = [
        {
            "FieldSelectors": [
                {"Field": "eventCategory", "Equals": ["Data"]},
                {"Field": "resources.ARN", "Equals": [arn]},
                {"Field": "resources.type", "Equals": [JOB]},
            ]
        }
    ]
    put = cloudtrail.put_event_selectors(TrailName=trail, AdvancedEventSelectors=advanced)
    assert cloudtrail.get_event_selectors(TrailName=trail)["AdvancedEventSelectors"] == advanced
    assert put["AdvancedEventSelectors"] == advanced
    sample()
    with pytest.raises(ClientError):
        runtime.complete_rollout(**about)

    cloudtrail.stop_logging(Name=trail)
    found = until(lambda: [r for r in files_of(tmp_path / "trail") if r["eventCategory"] == "Data"])
    assert [record["eventName"] for record in found] == ["Sample", "CompleteRollout"]
    assert found[0]["requestParameters"] is None
    assert found[1]["requestParameters"]["jobArn"] == arn
    assert found[0]["resources"] == [{"type": JOB, "ARN": arn, "accountId": "000000000001"}]
    assert found[0]["errorCode"] == "ResourceNotFoundException"
    assert found[0]["managementEvent"] is False
    # The event history does not show data events.
    events = cloudtrail.lookup_events()["Events"]
    assert "Sample" not in {event["EventName"] for event in events}


def test_selectors_and_trails_that_cloudtrail_would_refuse_are_refused(
    cloudtrail: Any, trail: str
) -> None:
    def refused(code: str, call: Callable[..., Any], **given: Any) -> None:
        with pytest.raises(ClientError) as error:
            call(**given)
        assert error.value.response["Error"]["Code"] == code

    fields = [{"Field": "eventName", "Equals": ["Sample"]}]
    refused(
        "InvalidEventSelectorsException",
        cloudtrail.put_event_selectors,
        TrailName=trail,
        AdvancedEventSelectors=[{"FieldSelectors": fields}],
    )
    refused("TrailNotFoundException", cloudtrail.get_trail_status, Name="another")
    refused("InvalidTrailNameException", cloudtrail.create_trail, Name="x", S3BucketName="logs")
    refused(
        "S3BucketDoesNotExistException",
        cloudtrail.create_trail,
        Name="to-nowhere",
        S3BucketName="no-such-bucket",
    )
    now = datetime.now(UTC)
    refused(
        "InvalidTimeRangeException",
        cloudtrail.lookup_events,
        StartTime=now,
        EndTime=now - timedelta(days=1),
    )


def test_the_trail_is_exported_for_sql_and_verified(server: Server, tmp_path: Path) -> None:
    server.call("GET", "/jobs")
    server.cli("audit", "export", str(tmp_path / "audit.json"), "--event-name", "ListJobs")
    records = json.loads((tmp_path / "audit.json").read_text())["Records"]
    assert {record["eventName"] for record in records} == {"ListJobs"}

    parquet = tmp_path / "audit.parquet"
    server.cli("audit", "export", str(parquet), "--format", "parquet", "--since", "1h")
    count = "SELECT count(*) n FROM rows WHERE event_name = 'ListJobs' AND read_only"
    assert sql(parquet, count) >= len(records)

    verdict = json.loads(server.cli("audit", "verify", "--json").stdout)
    assert verdict["is_intact"]
    assert verdict["records"] == verdict["last_seq"]


def sql(parquet: Path, query: str) -> Any:
    """The first value of a query over a Parquet file's rows, by way of SQLite."""
    code = (
        "import json, pyarrow.parquet as p;"
        f"t = p.read_table({str(parquet)!r}).select(['event_name', 'read_only']);"
        "print(json.dumps(t.to_pylist()))"
    )
    rows = json.loads(run_python(code))
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE rows (event_name TEXT, read_only INT)")
    database.executemany("INSERT INTO rows VALUES (:event_name, :read_only)", rows)
    value = database.execute(query).fetchone()[0]
    database.close()
    return value
