"""Event selectors: which calls a trail is about. Pure.

https://docs.aws.amazon.com/awscloudtrail/latest/APIReference/API_AdvancedEventSelector.html

Selectors are kept as clients send them, in CloudTrail's JSON. A trail selects an event if one of
its selectors does. An *advanced* selector does if all its fields do; of one field the values of
Equals, StartsWith and EndsWith are alternatives, and none of the Not... values may hold. The
`resources.*` fields are asked of one and the same resource. A *classic* selector chooses by
reading and writing, and data events by the beginning of their resource's ARN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from turnwise import errors
from turnwise.control.audit.record import Resource, Witnessed
from turnwise.domain.audit import Category

Json = dict[str, Any]

#: A trail without selectors of its own: all management events, no data events.
DEFAULT: list[Json] = [
    {
        "ReadWriteType": "All",
        "IncludeManagementEvents": True,
        "DataResources": [],
        "ExcludeManagementEventSources": [],
    }
]

_OPERATORS = ("Equals", "StartsWith", "EndsWith")
_MAX_CONDITIONS = 500  # over all selectors of a trail, as in CloudTrail
_MAX_CLASSIC = 5
_FIELDS = frozenset(
    {
        *("eventCategory", "eventName", "eventSource", "eventType", "readOnly"),
        *("resources.ARN", "resources.type", "userIdentity.arn"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """What selectors can ask of an event."""

    category: Category
    name: str
    source: str
    read_only: bool
    resources: Sequence[Resource] = ()
    user_arn: str = ""

    @classmethod
    def seen(cls, call: Witnessed) -> Facets:
        """Those of a call that is not recorded yet."""
        return cls(
            category=call.category,
            name=call.name,
            source=call.source,
            read_only=call.read_only,
            resources=call.resources,
            user_arn=call.identity.arn,
        )

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Facets:
        """Those of a record in CloudTrail's shape."""
        return cls(
            category=Category(record["eventCategory"]),
            name=record["eventName"],
            source=record["eventSource"],
            read_only=record["readOnly"],
            resources=[
                Resource(kind=each["type"], arn=each["ARN"]) for each in record["resources"]
            ],
            user_arn=record["userIdentity"]["arn"],
        )


def selects(selectors: Mapping[str, Sequence[Json]], event: Facets) -> bool:
    """Whether one of a trail's selectors, `{"classic": [...], "advanced": [...]}`, does."""
    return any(_advanced(each, event) for each in selectors.get("advanced", ())) or any(
        _classic(each, event) for each in selectors.get("classic", ())
    )


def selects_data(selectors: Mapping[str, Sequence[Json]]) -> bool:
    """Whether some data event may be selected."""
    advanced = (
        field
        for selector in selectors.get("advanced", ())
        for field in selector["FieldSelectors"]
        if field["Field"] == "eventCategory"
    )
    return any(Category.DATA.value in field.get("Equals", ()) for field in advanced) or any(
        selector.get("DataResources") for selector in selectors.get("classic", ())
    )


# ── advanced ──────────────────────────────────────────────────────────────────────────────────


def _advanced(selector: Mapping[str, Any], event: Facets) -> bool:
    fields: Sequence[Mapping[str, Any]] = selector["FieldSelectors"]
    plain = {
        "eventCategory": event.category.value,
        "eventName": event.name,
        "eventSource": event.source,
        "eventType": "AwsApiCall",
        "readOnly": "true" if event.read_only else "false",
        "userIdentity.arn": event.user_arn,
    }
    of_resources = [field for field in fields if field["Field"].startswith("resources.")]
    others = [field for field in fields if field not in of_resources]
    return all(_holds(field, plain[field["Field"]]) for field in others) and (
        not of_resources or any(_is_about(of_resources, each) for each in event.resources)
    )


def _is_about(fields: Sequence[Mapping[str, Any]], resource: Resource) -> bool:
    values = {"resources.ARN": resource.arn, "resources.type": resource.kind}
    return all(_holds(field, values[field["Field"]]) for field in fields)


def _holds(field: Mapping[str, Any], value: str) -> bool:
    wanted = [(name, each) for name in _OPERATORS for each in field.get(name) or ()]
    unwanted = [(name, each) for name in _OPERATORS for each in field.get("Not" + name) or ()]
    is_wanted = not wanted or any(_matches(name, value, each) for name, each in wanted)
    return is_wanted and not any(_matches(name, value, each) for name, each in unwanted)


def _matches(operator: str, value: str, given: str) -> bool:
    if operator == "StartsWith":
        return value.startswith(given)
    if operator == "EndsWith":
        return value.endswith(given)
    return value == given


# ── classic ───────────────────────────────────────────────────────────────────────────────────


def _classic(selector: Mapping[str, Any], event: Facets) -> bool:
    wanted = selector.get("ReadWriteType") or "All"
    if wanted != "All" and (wanted == "ReadOnly") != event.read_only:
        return False
    if event.category is Category.MANAGEMENT:
        excluded = selector.get("ExcludeManagementEventSources") or ()
        return selector.get("IncludeManagementEvents", True) and event.source not in excluded
    return any(
        resource.kind == chosen["Type"] and _begins(resource.arn, chosen.get("Values") or ())
        for chosen in selector.get("DataResources") or ()
        for resource in event.resources
    )


def _begins(arn: str, values: Sequence[str]) -> bool:
    return any(arn.startswith(value) for value in values)


# ── what is refused ───────────────────────────────────────────────────────────────────────────


class _Resources(msgspec.Struct, forbid_unknown_fields=True):
    Type: str | None = None
    Values: list[str] | None = None


class _Classic(msgspec.Struct, forbid_unknown_fields=True):
    ReadWriteType: Literal["All", "ReadOnly", "WriteOnly"] | None = None
    IncludeManagementEvents: bool = True
    DataResources: list[_Resources] | None = None
    ExcludeManagementEventSources: list[str] | None = None


class _Field(msgspec.Struct, forbid_unknown_fields=True):
    Field: str
    Equals: list[str] | None = None
    StartsWith: list[str] | None = None
    EndsWith: list[str] | None = None
    NotEquals: list[str] | None = None
    NotStartsWith: list[str] | None = None
    NotEndsWith: list[str] | None = None


class _Advanced(msgspec.Struct, forbid_unknown_fields=True):
    FieldSelectors: list[_Field]
    Name: str | None = None


def _check_types(name: str, selectors: Sequence[Json], wanted: type[msgspec.Struct]) -> None:
    """Raise `InvalidInput` for members of another type, which would fail at each call."""
    for n, selector in enumerate(selectors):
        try:
            msgspec.convert(selector, wanted)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            raise errors.InvalidInput(f"{name}[{n}]", selector, f"is wrong: {error}") from None


def check(classic: Sequence[Json], advanced: Sequence[Json]) -> None:
    """Raise `InvalidInput` for what CloudTrail would refuse."""
    _check_types("EventSelectors", classic, _Classic)
    _check_types("AdvancedEventSelectors", advanced, _Advanced)
    if bool(classic) == bool(advanced):
        raise errors.InvalidInput(
            "EventSelectors",
            len(classic),
            "and AdvancedEventSelectors are given together or not at all",
            remedy="give exactly one of the two",
        )
    if len(classic) > _MAX_CLASSIC:
        raise errors.InvalidInput("EventSelectors", len(classic), f"are more than {_MAX_CLASSIC}")
    for n, selector in enumerate(classic):
        for m, chosen in enumerate(selector.get("DataResources") or ()):
            if not chosen.get("Type"):
                where = f"EventSelectors[{n}].DataResources[{m}].Type"
                raise errors.InvalidInput(where, chosen.get("Type"), "is required")
    for n, selector in enumerate(advanced):
        _check_advanced(f"AdvancedEventSelectors[{n}]", selector["FieldSelectors"])
    conditions = sum(
        len(values or ())
        for selector in advanced
        for field in selector["FieldSelectors"]
        for name, values in field.items()
        if name != "Field"
    )
    if conditions > _MAX_CONDITIONS:
        raise errors.InvalidInput(
            "AdvancedEventSelectors", conditions, f"values are more than {_MAX_CONDITIONS}"
        )


def _check_advanced(where: str, fields: Sequence[Mapping[str, Any]]) -> None:
    by_name = {field["Field"]: field for field in fields}
    if len(by_name) != len(fields):
        raise errors.InvalidInput(where, sorted(by_name), "names a field twice")
    for name, field in by_name.items():
        if name not in _FIELDS:
            allowed = ", ".join(sorted(_FIELDS))
            raise errors.InvalidInput(f"{where}.Field", name, "is not known", remedy=allowed)
        if not any(field.get(no + op) for op in _OPERATORS for no in ("", "Not")):
            raise errors.InvalidInput(f"{where}.{name}", None, "has no operator with values")
    category = _only_equals(where, by_name, "eventCategory")
    if len(category) != 1 or category[0] not in set(Category):
        raise errors.InvalidInput(
            f"{where}.eventCategory", category, "must equal Management or Data"
        )
    if "readOnly" in by_name and not set(_only_equals(where, by_name, "readOnly")) < {
        "true",
        "false",
    }:
        raise errors.InvalidInput(
            f"{where}.readOnly", by_name["readOnly"], "must equal true or false"
        )
    if category[0] == Category.DATA:
        _only_equals(where, by_name, "resources.type")
    elif about := sorted(name for name in by_name if name.startswith("resources.")):
        raise errors.InvalidInput(f"{where}.{about[0]}", "", "is for data events alone")


def _only_equals(where: str, fields: Mapping[str, Mapping[str, Any]], name: str) -> Sequence[str]:
    """The values of a field that may have no other operator. Raises where it is missing."""
    field = fields.get(name, {})
    others = [key for key, values in field.items() if key not in ("Field", "Equals") and values]
    if others or not field.get("Equals"):
        raise errors.InvalidInput(f"{where}.{name}", others, "is required, with Equals alone")
    values: Sequence[str] = field["Equals"]
    return values
