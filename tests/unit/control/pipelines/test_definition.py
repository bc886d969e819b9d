import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise import errors
from turnwise.control.pipelines.definition import (
    MAX_STEPS,
    Definition,
    StepKind,
    parse_definition,
    references,
    resolve,
)

JOB = {
    "JobCategory": "AgentRFTEvaluation",
    "RoleArn": "arn:aws:iam::000000000001:role/any",
    "JobConfigSchemaVersion": "1.0.0",
    "JobConfigDocument": "{}",
}
ACTION = {
    "ActionName": {"Get": "Execution.PipelineExecutionId"},
    "ActionType": "Evaluation",
    "Source": {"SourceUri": "s3://a/b"},
}


def job(name: str = "Evaluate", *depends_on: str, **arguments: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "Type": "Job",
        "DependsOn": list(depends_on),
        "Arguments": JOB | arguments,
    }


def parse(*steps: Any, **members: Any) -> Definition:
    definition = {"Version": "2020-12-01", "Steps": list(steps)} | members
    return parse_definition(json.dumps(definition))


def refused(*steps: Any, **members: Any) -> str:
    with pytest.raises(errors.InvalidInput) as refused:
        parse(*steps, **members)
    return str(refused.value)


def test_a_definition_of_lineage_and_job_steps_is_read():
    note = {"Name": "Note", "Type": "Lineage", "Arguments": {"Actions": [ACTION]}}
    run = {"Get": "Steps.Evaluate.JobConfigDocument.ServiceOutput.MlflowDetails.RunId"}
    after = {
        "Name": "After",
        "Type": "Lineage",
        "Arguments": {"Artifacts": [{"ArtifactType": "Report", "Source": {"SourceUri": run}}]},
    }
    definition = parse(note, job("Evaluate", "Note"), after, Metadata={}, Parameters=[])

    assert [(step.name, step.kind) for step in definition.steps] == [
        ("Note", StepKind.LINEAGE),
        ("Evaluate", StepKind.JOB),
        ("After", StepKind.LINEAGE),
    ]
    depends_on = [set(step.depends_on) for step in definition.steps]
    assert depends_on == [set(), {"Note"}, {"Evaluate"}]  # the last by what it gets


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([job() | {"Type": "Training"}], "step 'Evaluate': Type: 'Training' is not run here"),
        ([job() | {"CacheConfig": {}}], "step 'Evaluate': CacheConfig: {} is not understood"),
        ([job(Environment="x")], "step 'Evaluate': Arguments: Environment"),
        ([job(RoleArn="")], "step 'Evaluate': Arguments.RoleArn: None is required"),
        ([job("Evaluate", "Before")], "step 'Evaluate': DependsOn: 'Before' is no step"),
        ([job("A", "B"), job("B", "A")], "goes in a circle"),
        ([job("A", "A")], "step 'A': DependsOn: 'A -> A' goes in a circle"),
        ([job(), job()], "step name: 'Evaluate' is there twice"),
        ([job("no good")], "Steps[0].Name: 'no good' must be 1 to 64 letters"),
        ([job(Tags=[{"Get": "Nothing"}])], "step 'Evaluate': Get: 'Nothing' is no value here"),
        ([job(Tags={"Get": "Execution.Secret"})], "'Execution.Secret' is no value here"),
        ([job(Tags={"Get": "Parameters.x"})], "'Parameters.x' is no parameter of this pipeline"),
        ([job(Tags={"Get": "Steps.Other.JobArn"})], "DependsOn: 'Other' is no step"),
        ([job(Tags={"Get": "Steps.Evaluate.JobArn"})], "'Evaluate -> Evaluate' goes in a circle"),
        ([job(Tags={"Get": "Steps.X.JobName.y"})], "'Steps.X.JobName.y' is no value here"),
        ([job(Tags={"Get": ["a"]})], "step 'Evaluate': Get: ['a'] is no value here"),
        ([job(Tags={"Get": "Execution.PipelineName", "b": 1})], "is an expression unknown here"),
        ([job(Tags={"Std:Split": {}})], "step 'Evaluate': {'Std:Split': {}} is an expression"),
        ([job(Tags={"Std:Join": {"On": 1, "Values": []}})], "step 'Evaluate': Std:Join"),
        ([job(Tags={"Std:Join": {"On": "", "Values": [[]]}})], "cannot be joined"),
        ([job(), {"Name": "N", "Type": "Lineage", "Arguments": {"Actions": [{}]}}], "step 'N'"),
        ([job(), {"Name": "N", "Type": "Lineage", "Arguments": {"Jobs": []}}], "step 'N'"),
        ([], "Steps: 0 must be 1 to 50 steps"),
        ([job(f"s{number}") for number in range(MAX_STEPS + 1)], "Steps: 51"),
        (["step"], "Steps[0]: 'step' must be an object"),
    ],
)
def test_what_cannot_be_run_is_refused_by_the_name_of_its_step(steps: list[Any], words: str):
    assert words in refused(*steps)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be an object"),
        ('{"Metadata": NaN}', "NaN is no number"),
        ('{"Metadata": 1e999}', "is not JSON"),
        ('{"Metadata": 18446744073709551616}', "has more than 64 bits"),
        ('{"\\ud800": 1}', "holds half a character"),
        ('{"Version": "1", "Steps": []}', 'must be "2020-12-01"'),
        ('{"Version": "2020-12-01", "Steps": {}}', "must be a list"),
        ('{"Version": "2020-12-01", "Steps": [], "Extra": 1}', "Extra: 1 is not understood"),
    ],
)
def test_a_text_that_is_no_definition_is_refused(text: str, words: str):
    with pytest.raises(errors.InvalidInput) as refused:
        parse_definition(text)
    assert words in str(refused.value)


def test_a_definition_nested_past_all_sense_is_refused():
    deep = "[" * 5000 + "]" * 5000
    text = json.dumps({"Version": "2020-12-01", "Steps": [job(Tags="DEEP")]})
    with pytest.raises(errors.InvalidInput, match=r"nested too deeply|is not JSON"):
        parse_definition(text.replace('"DEEP"', deep))


def test_parameters_are_typed_and_required_unless_they_have_a_default():
    definition = parse(
        job(Tags=[{"Get": "Parameters.count"}]),
        Parameters=[
            {"Name": "count", "Type": "Integer"},
            {"Name": "share", "Type": "Float", "DefaultValue": 1},
            {"Name": "fast", "Type": "Boolean", "DefaultValue": False},
            {"Name": "size", "Type": "String", "DefaultValue": "s", "EnumValues": ["s", "l"]},
        ],
    )
    bound = definition.bind({"count": "3", "fast": "true"})
    assert bound == {"count": 3, "share": 1, "fast": True, "size": "s"}
    for given_values, words in (
        ({}, "'count' is required"),
        ({"count": "many"}, "parameter count: 'many' is no Integer"),
        ({"count": "9" * 40}, "is no Integer"),
        ({"count": "1", "size": "m"}, "parameter size: 'm' is not allowed; one of s, l"),
        ({"count": "1", "share": "nan"}, "parameter share: 'nan' is no Float"),
        ({"count": "1", "colour": "red"}, "'colour' is no parameter"),
    ):
        with pytest.raises(errors.InvalidInput) as refused:
            definition.bind(given_values)
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ({"Type": "String"}, "must have a Name"),
        ({"Name": "x", "Type": "Date"}, "Parameters.x.Type: 'Date' is unknown"),
        ({"Name": "x", "Type": []}, "Parameters.x.Type: [] is unknown"),
        ({"Name": "x", "Type": "Integer", "DefaultValue": "1"}, "Parameters.x: '1' is no Integer"),
        ({"Name": "x", "Type": "Integer", "DefaultValue": True}, "Parameters.x: True"),
        ({"Name": "x", "Type": "String", "DefaultValue": "a", "EnumValues": ["b"]}, "EnumValues"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(parameter: Any, words: str):
    assert words in refused(job(), Parameters=[parameter])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("aé/$", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_a_value_without_expressions_resolves_to_itself(value: Any):
    before = copy.deepcopy(value)
    assert list(references(value, "here")) == []
    assert resolve(value, {}.__getitem__) == before == value


@given(plain, st.text("aé/$", max_size=5))
def test_an_expression_is_found_and_replaced_wherever_it_is_nested(value: Any, found: str):
    path = "Parameters.x"
    joined = {"Std:Join": {"On": "/", "Values": [{"Get": path}, "a", {"Get": path}, 2, True]}}
    nested = {"a": [value, {"b": {"Get": path}}], "c": joined}
    assert list(references(nested, "here")) == [path] * 3
    assert resolve(nested, {path: found}.__getitem__) == {
        "a": [value, {"b": found}],
        "c": f"{found}/a/{found}/2/true",
    }
