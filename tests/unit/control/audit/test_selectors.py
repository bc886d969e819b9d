"""Event selectors: what they select, and which are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise.control.audit.record import Resource
from turnwise.control.audit.selectors import (
    DEFAULT,
    Facets,
    InvalidSelectors,
    check,
    selects,
    selects_data,
)
from turnwise.domain.audit import Category

KIND = "AWS::SageMaker::Job"
ARN = "arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk"


def event(name: str = "Sample", **changes: Any) -> Facets:
    fields: dict[str, Any] = {
        "category": Category.DATA,
        "name": name,
        "source": "sagemaker.amazonaws.com",
        "read_only": False,
        "resources": [Resource(kind=KIND, arn=ARN)],
    }
    return Facets(**(fields | changes))


def advanced(*fields: tuple[str, str, list[str]], category: str = "Data") -> list[dict[str, Any]]:
    by_field: dict[str, dict[str, Any]] = {
        "eventCategory": {"Field": "eventCategory", "Equals": [category]}
    }
    if category == "Data":
        by_field["resources.type"] = {"Field": "resources.type", "Equals": [KIND]}
    for name, operator, values in fields:
        by_field.setdefault(name, {"Field": name})[operator] = values
    return [{"FieldSelectors": list(by_field.values())}]


def chosen(selectors: list[dict[str, Any]], seen: Facets) -> bool:
    check((), selectors)
    return selects({"advanced": selectors}, seen)


def test_values_are_alternatives_and_fields_must_all_hold() -> None:
    both = ("eventName", "Equals", ["Sample", "UpdateReward"])
    assert chosen(advanced(both), event("Sample"))
    assert chosen(advanced(both), event("UpdateReward"))
    assert not chosen(advanced(both), event("CompleteRollout"))
    assert not chosen(advanced(both, ("readOnly", "Equals", ["true"])), event("Sample"))
    assert not chosen(advanced(both), event("Sample", category=Category.MANAGEMENT))


def test_operators_of_one_field_are_alternatives_and_none_of_the_nots_may_hold() -> None:
    either = (("eventName", "StartsWith", ["Sam"]), ("eventName", "EndsWith", ["Reward"]))
    assert chosen(advanced(*either), event("Sample"))
    assert chosen(advanced(*either), event("UpdateReward"))
    but = (*either, ("eventName", "NotEquals", ["Sample"]))
    assert not chosen(advanced(*but), event("Sample"))
    assert chosen(advanced(*but), event("SampleWithResponseStream"))


def test_the_fields_of_resources_are_asked_of_one_resource() -> None:
    by_arn = advanced(("resources.ARN", "Equals", [ARN]))
    assert chosen(by_arn, event())
    two = [Resource(kind=KIND, arn="arn:other"), Resource(kind="AWS::S3::Object", arn=ARN)]
    assert not chosen(by_arn, event(resources=two))
    assert not chosen(by_arn, event(resources=[]))


@given(st.text(min_size=1), st.text(), st.sampled_from(["Equals", "StartsWith", "EndsWith"]))
def test_a_not_selects_what_its_counterpart_does_not(value: str, name: str, operator: str) -> None:
    seen = event(name)
    wanted = advanced(("eventName", operator, [value]))
    unwanted = advanced(("eventName", "Not" + operator, [value]))
    assert chosen(wanted, seen) != chosen(unwanted, seen)


def test_classic_selectors_choose_by_reading_and_by_the_beginning_of_arns() -> None:
    management = event("CreateJob", category=Category.MANAGEMENT)
    listing = event("ListJobs", category=Category.MANAGEMENT, read_only=True)
    assert selects({"classic": DEFAULT}, management)
    assert not selects({"classic": DEFAULT}, event())
    assert not selects_data({"classic": DEFAULT})
    writes = [DEFAULT[0] | {"ReadWriteType": "WriteOnly"}]
    assert selects({"classic": writes}, management)
    assert not selects({"classic": writes}, listing)
    source = [DEFAULT[0] | {"ExcludeManagementEventSources": ["sagemaker.amazonaws.com"]}]
    assert not selects({"classic": source}, management)
    of_jobs = [DEFAULT[0] | {"DataResources": [{"Type": KIND, "Values": [ARN[:40]]}]}]
    assert selects_data({"classic": of_jobs})
    assert selects({"classic": of_jobs}, event())


@pytest.mark.parametrize(
    "fields",
    [
        [{"Field": "eventName", "Equals": ["Sample"]}],
        [{"Field": "eventCategory", "Equals": ["Insight"]}],
        [{"Field": "eventCategory", "Equals": ["Data"]}],
        [{"Field": "eventCategory", "StartsWith": ["Data"]}],
        [{"Field": "eventCategory", "Equals": ["Management"]}, {"Field": "eventName"}],
        [
            {"Field": "eventCategory", "Equals": ["Management"]},
            {"Field": "resources.type", "Equals": [KIND]},
        ],
        [
            {"Field": "eventCategory", "Equals": ["Management"]},
            {"Field": "readOnly", "Equals": ["maybe"]},
        ],
        [{"Field": "eventCategory", "Equals": ["Management"]}, {"Field": "x", "Equals": ["y"]}],
    ],
)
def test_selectors_that_cloudtrail_would_refuse_are_refused(fields: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidSelectors):
        check((), [{"FieldSelectors": fields}])


def test_classic_and_advanced_exclude_each_other() -> None:
    for classic, both in (((), ()), (DEFAULT, advanced())):
        with pytest.raises(InvalidSelectors):
            check(classic, both)
