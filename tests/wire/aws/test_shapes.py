"""Values checked by botocore's shapes, and results written by them."""

from __future__ import annotations

import calendar
import math
from typing import Any

import botocore.session
import pytest
from botocore.model import Shape, ShapeResolver
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.wire.aws import shapes
from turnwise.wire.aws.service import load_model

SHAPES = {
    "Thing": {
        "type": "structure",
        "required": ["Name"],
        "members": {
            "Name": {"shape": "Name"},
            "Size": {"shape": "Size"},
            "Share": {"shape": "Share"},
            "IsOn": {"shape": "Flag"},
            "At": {"shape": "Time"},
            "AtText": {"shape": "TimeText"},
            "Data": {"shape": "Blob"},
            "Tags": {"shape": "Tags"},
            "Parts": {"shape": "Parts"},
            "Kind": {"shape": "Kind"},
            "Renamed": {"shape": "Name", "locationName": "onTheWire"},
            "Free": {"shape": "Free"},
            "Long": {"shape": "Long"},
        },
    },
    "Name": {"type": "string", "min": 1, "max": 4, "pattern": "[a-z]*"},
    "Size": {"type": "integer", "min": 1, "max": 9},
    "Free": {"type": "integer"},
    "Long": {"type": "long"},
    "Share": {"type": "double", "min": 0},
    "Flag": {"type": "boolean"},
    "Time": {"type": "timestamp"},
    "TimeText": {"type": "timestamp", "timestampFormat": "iso8601"},
    "Blob": {"type": "blob"},
    "Tags": {"type": "map", "key": {"shape": "Name"}, "value": {"shape": "Size"}, "max": 2},
    "Part": {"type": "structure", "required": ["Size"], "members": {"Size": {"shape": "Size"}}},
    "Parts": {"type": "list", "member": {"shape": "Part"}, "max": 2},
    "Kind": {"type": "string", "enum": ["One", "Two"]},
}
THING: Shape = ShapeResolver(SHAPES).get_shape_by_name("Thing")


def test_what_the_model_allows_comes_out_as_python_values():
    given_ = {
        "Name": "abc",
        "Size": 9,
        "Share": 1,
        "IsOn": False,
        "At": 1700000000,
        "AtText": "2026-11-20T01:02:03Z",
        "Data": "aGk=",
        "Tags": {"a": 1},
        "Parts": [{"Size": 2}, {"Size": 3, "Unknown": 1}],
        "Kind": "Two",
        "onTheWire": "x",
        "Renamed": "not this one",
        "Unknown": {"dropped": True},
    }
    assert shapes.read(THING, given_) == {
        "Name": "abc",
        "Size": 9,
        "Share": 1.0,
        "IsOn": False,
        "At": 1700000000.0,
        "AtText": float(calendar.timegm((2026, 11, 20, 1, 2, 3))),
        "Data": b"hi",
        "Tags": {"a": 1},
        "Parts": [{"Size": 2}, {"Size": 3}],
        "Kind": "Two",
        "Renamed": "x",
    }
    assert shapes.read(THING, {"Name": "a", "Size": None}) == {"Name": "a"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"Name": None}, "Name: None is required"),
        ({"Name": ""}, "Name: '' must have at least 1 characters"),
        ({"Name": "abcde"}, "Name: 'abcde' must have at most 4 characters"),
        ({"Name": "AB"}, "Name: 'AB' must match [a-z]*"),
        ({"Name": "a\n"}, "Name: 'a\\n' must match"),
        ({"Name": 3}, "Name: 3 must be text"),
        ({"Name": "\ud800"}, "Name: '\\ud800' is not text"),
        ({"Size": 0}, "Size: 0 must be at least 1"),
        ({"Size": 10}, "Size: 10 must be at most 9"),
        ({"Size": True}, "Size: True must be a whole number"),
        ({"Size": 1.0}, "Size: 1.0 must be a whole number"),
        ({"Size": "1"}, "Size: '1' must be a whole number"),
        ({"Share": -0.5}, "Share: -0.5 must be at least 0"),
        ({"Share": False}, "Share: False must be a number"),
        ({"Share": "1"}, "Share: '1' must be a number"),
        ({"IsOn": "false"}, "IsOn: 'false' must be true or false"),
        ({"At": "yesterday"}, "At: 'yesterday' is no time"),
        ({"At": math.inf}, "At: inf must be seconds since 1970"),
        ({"At": True}, "At: True must be seconds"),
        ({"At": 10**400}, "is too large"),
        ({"At": 1e18}, "of the years 1 to 9999"),
        ({"At": -1e18}, "of the years 1 to 9999"),
        ({"Share": 10**400}, "is too large"),
        ({"Free": 2**31}, "Free: 2147483648 must be a whole number of 32 bits"),
        ({"Long": -(2**63) - 1}, "must be a whole number of 64 bits"),
        ({"Data": "%"}, "Data: '%' must be base64"),
        ({"Data": 7}, "Data: 7 must be base64"),
        ({"Tags": []}, "Tags: [] must be an object"),
        ({"Tags": {"a": 1, "b": 1, "c": 1}}, "must have at most 2 members"),
        ({"Tags": {"A": 1}}, "Tags: 'A' must match"),
        ({"Tags": {"a": 0}}, "Tags.a: 0 must be at least 1"),
        ({"Parts": {}}, "Parts: {} must be a list"),
        ({"Parts": [{"Size": 1}] * 3}, "must have at most 2 members"),
        ({"Parts": [{"Size": 1}, {}]}, "Parts[1].Size: None is required"),
        ({"Parts": [{"Size": 1}, 5]}, "Parts[1]: 5 must be an object"),
        ({"Kind": "Three"}, "Kind: 'Three' must be one of One, Two"),
    ],
)
def test_what_it_forbids_is_refused_with_the_members_path(wrong: dict[str, Any], said: str):
    with pytest.raises(errors.InvalidInput) as refused:
        shapes.read(THING, {"Name": "a"} | wrong)
    assert said in str(refused.value)


@pytest.mark.parametrize("value", [[], "text", 5, None])
def test_a_request_that_is_no_object_is_refused(value: Any):
    with pytest.raises(errors.InvalidInput, match=r"the request: .* must be an object"):
        shapes.read(THING, value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*SHAPES["Thing"]["members"], "x"]), inner, max_size=5
            )
        ),
    )
)
def test_anything_is_either_read_or_refused_and_what_is_read_can_be_written(value: Any):
    try:
        read = shapes.read(THING, value)
    except errors.InvalidInput:
        return
    written = shapes.write(THING, read)
    again = shapes.read(THING, written)
    assert _but_for_times(again) == _but_for_times(read)  # which are written with milliseconds


def _but_for_times(thing: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in thing.items() if name not in ("At", "AtText")}


def test_results_are_written_by_the_model():
    result = {
        "Name": "abc",
        "Size": None,
        "At": 1700000000.12345,
        "AtText": 1700000000.9,
        "Data": b"hi",
        "Tags": {"a": 1},
        "Parts": [{"Size": 2}],
        "Renamed": "x",
    }
    assert shapes.write(THING, result) == {
        "Name": "abc",
        "At": 1700000000.123,
        "AtText": "2023-11-14T22:13:20Z",
        "Data": "aGk=",
        "Tags": {"a": 1},
        "Parts": [{"Size": 2}],
        "onTheWire": "x",
    }
    with pytest.raises(KeyError):
        shapes.write(THING, {"Nam": "abc"})


def pattern_of(service: str, name: str) -> Shape:
    return load_model(service).shape_for(name)


@pytest.mark.parametrize(
    ("service", "name", "good", "bad"),
    [
        # Classes of Unicode: letters, marks, spaces, symbols, numbers and punctuation.
        ("sagemaker", "EntityDescription", ["Walks, (and) runs! 5 € – ünï"], []),
        ("sagemaker", "TagKey", ["team:walk/run=1+2-3@x", "ü 1"], ["a,b", "a#b"]),
        ("sagemaker", "EntityName", ["a-b"], ["a b", "-a"]),
    ],
)
def test_patterns_of_unicode_classes_are_read(
    service: str, name: str, good: list[str], bad: list[str]
):
    shape = pattern_of(service, name)
    assert "pattern" in shape.metadata
    for text in good:
        assert shapes.read(shape, text) == text
    for text in bad:
        with pytest.raises(errors.InvalidInput, match="must match"):
            shapes.read(shape, text)


#: Patterns of dialects that Python cannot read; what they forbid is not refused here.
UNREADABLE = {
    *("AthenaCatalog", "Catalog", "CustomerMetadataKey", "CustomerMetadataValue", "Database"),
    *("PartitionKeyName", "PartitionKeyType", "ResourceType", "TableName"),
}


def test_all_other_patterns_of_the_services_here_are_read():
    unread = set()
    session = botocore.session.get_session()
    for service in (
        *("sagemaker", "logs", "cloudtrail", "lambda", "bedrock-agentcore"),
        *("bedrock-agentcore-control", "iam", "sts"),
    ):
        model = session.get_service_model(service)
        for name in model.shape_names:
            pattern = model.shape_for(name).metadata.get("pattern")
            if pattern and shapes._compiled(pattern) is None:
                unread.add(name)
    assert unread == UNREADABLE
