import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import builders
from turnwise import errors
from turnwise.control.job_file import as_mapping, parse_job, read_job, read_text
from turnwise.domain.job import AgentKind, AgentSpec, JobSpec, ScheduleSpec, ScorerSpec
from turnwise.domain.rollout import SamplingParams
from turnwise.domain.training import AdvantageMethod, LoraSpec

EXAMPLES = Path(__file__).parents[3] / "examples"

SMALLEST = {
    "name": "walk",
    "model": "/models/tiny",
    "dataset": "/data/train.jsonl",
    "agent": {"url": "http://127.0.0.1:8430"},
}


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(errors.InvalidInput) as refused:
        parse_job(SMALLEST | changes)
    return str(refused.value)


def test_what_is_left_out_has_its_default():
    assert parse_job(SMALLEST) == builders.spec(
        agent=AgentSpec(kind=AgentKind.HTTP, url="http://127.0.0.1:8430")
    )


def test_a_spec_is_the_spec_of_the_job_file_it_is_written_as():
    spec = parse_job(SMALLEST | {"lora": {"rank": 8, "target_modules": ["q_proj"]}})
    assert spec.lora == LoraSpec(rank=8, target_modules=("q_proj",))
    assert parse_job(yaml.safe_load(yaml.safe_dump(as_mapping(spec)))) == spec


def test_numbers_in_the_forms_that_yaml_gives_them_are_read():
    spec = parse_job(
        SMALLEST
        | yaml.safe_load(
            "optimizer: {learning_rate: 1e-4, beta1: 0}\n"  # YAML: a text, a whole number
            "schedule: {max_steps: 3.0, max_epochs: '2'}\n"
            "algorithm: {advantage_method: rloo}\n"
            "validation: {pass_k_values: [1, 4]}\n"
        )
    )
    assert (spec.optimizer.learning_rate, type(spec.optimizer.beta1)) == (1e-4, float)
    assert spec.schedule == ScheduleSpec(max_steps=3, max_epochs=2)
    assert spec.algorithm.advantage_method is AdvantageMethod.RLOO
    assert spec.validation.pass_k_values == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tracking": {"wandb": {"enabled": True, "project": "a/b"}}},
            "tracking.wandb.project: 'a/b' has a character that W&B does not allow; "
            "use none of / \\ # ? % :",
        ),
        (
            {"datset": "x"},
            "datset: 'x' is set, but there is no such setting; did you mean dataset?",
        ),
        (
            {"batch": {"groupsize": 4}},
            "batch.groupsize: 4 is set, but there is no such setting; "
            "did you mean batch.group_size?",
        ),
        (
            {"learning_rate": 0.1},
            "learning_rate: 0.1 is set, but there is no such setting; "
            "did you mean optimizer.learning_rate?",
        ),
        (
            {"lora": {"zzz": 1}},
            "lora.zzz: 1 is set, but there is no such setting; "
            "known here: lora.rank, lora.alpha, lora.target_modules",
        ),
        (
            {"temperature": 0.5},
            "temperature: 0.5 is set, but there is no such setting; "
            "did you mean sampling_params.temperature?",
        ),
        ({1: 2}, "1: 2 is set, but there is no such setting; known here: "),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    changes: dict[str, Any], message: str
):
    assert refusal(changes).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch": {"global_batch_size": 0}},
            "batch.global_batch_size: 0 is out of range; must be at least 1",
        ),
        (
            {"sampling_params": {"top_p": 0}},
            "sampling_params.top_p: 0.0 is out of range; must be above 0 and at most 1",
        ),
        (
            {"optimizer": {"beta2": 1}},
            "optimizer.beta2: 1.0 is out of range; must be at least 0 and below 1",
        ),
        ({"seed": -1}, "seed: -1 is out of range; must be at least 0 and at most 4294967295"),
        (
            {"validation": {"pass_k_values": [1, 0]}},
            "validation.pass_k_values[1]: 0 is out of range; must be at least 1",
        ),
        (
            {"validation": {"pass_k_values": []}},
            "validation.pass_k_values: [] is not a list with at least one entry",
        ),
        (
            {"lora": {"target_modules": "q_proj"}},
            "lora.target_modules: 'q_proj' is not a list with at least one entry",
        ),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"seed": "many"}, "seed: 'many' is not a whole number"),
        ({"lora": {"alpha": None}}, "lora.alpha: None is not a number"),
        ({"lora": {"alpha": "inf"}}, "lora.alpha: 'inf' is not a finite number"),
        ({"lora": {"alpha": 10**400}}, "is not a finite number"),
        ({"deterministic": "yes"}, "deterministic: 'yes' is not true or false"),
        (
            {"description": 7},
            "description: 7 is not text (quote it, or leave the setting out)",
        ),
        ({"batch": None}, "batch: None is not a block of settings"),
        ({"agent": "http://x"}, "agent: 'http://x' is not a block of settings"),
        (
            {"algorithm": {"loss_fn": "pppo"}},
            "algorithm.loss_fn: 'pppo' is not a choice; "
            "did you mean ppo? allowed: ppo, cispo, importance_sampling, gspo",
        ),
        ({"history": ["exact"]}, "history: ['exact'] is not a choice; "),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_what_is_allowed(
    changes: dict[str, Any], message: str
):
    assert message in refusal(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "my_job"},
            "name: 'my_job' is not a job name; "
            "use 1 to 63 letters, digits and, between them, hyphens",
        ),
        ({"name": "a" * 64}, "is not a job name"),
        ({"name": "-walk"}, "is not a job name"),
        ({"name": ""}, "is not a job name"),
        ({"model": ""}, "model: '' is empty; it must be set"),
        (
            {"dataset": "train.jsonl"},
            "dataset: 'train.jsonl' is a relative path; give its absolute path on the server",
        ),
        ({"agent": {}}, "agent.url: '' is no HTTP address; use http://host:port"),
        ({"agent": {"url": "http://["}}, "agent.url: 'http://[' is no HTTP address"),
        (
            {"agent": {"url": "http://me:hidden@here/x"}},
            "agent.url: 'http://...@here' holds a password, which would be shown; leave it out",
        ),
        (
            {"agent": {"url": "localhost:80"}},
            "agent.url: 'localhost:80' is no HTTP address; use http://host:port",
        ),
        (
            {"agent": {"kind": "evaluator", "target": "math", "extra_body": "[1]"}},
            'agent.extra_body: \'[1]\' is not a JSON object as text; as {"stop": ["END"]}',
        ),
        (
            {"agent": {"url": "http://a:1", "extra_body": "{}"}},
            "agent.extra_body: '{}' goes with no model call of an agent of kind http; leave it out",
        ),
        (
            {"agent": {"kind": "evaluator"}},
            "agent.target: '' names no evaluator; use the id of one that was uploaded and built",
        ),
        (
            {"agent": {"kind": "python", "target": "agent"}},
            "agent.target: 'agent' names no function; use \"package.module:function\"",
        ),
        (
            {"batch": {"group_size": 1}},
            "batch.group_size: 1 leaves group_based nothing to compare; use at least 2",
        ),
        (
            {"batch": {"global_batch_size": 1, "group_size": 2, "updates_per_step": 3}},
            "batch.updates_per_step: 3 leaves updates without a rollout; "
            "use at most 2, global_batch_size x group_size",
        ),
        (
            {"algorithm": {"advantage_method": "pkpo", "pass_k": 5}, "batch": {"group_size": 4}},
            "algorithm.pass_k: 5 is more than a group has rollouts (4), so the best of so many is "
            "unknown; use at most batch.group_size",
        ),
        (
            {"algorithm": {"tis_cap": 0.5}},
            "algorithm.tis_cap: 0.5 would cut the weight of tokens on which sampler and learner "
            "agree; use at least 1 (2 is usual), or 0 for none",
        ),
        (
            {"sampling_params": {"temperature": 0}},
            "sampling_params.temperature: 0 gives siblings that are all alike, so nothing can be "
            "learned; use 1 for training; val_sampling_params may be 0",
        ),
        (
            {"rollout": {"truncated_turns": "penalise"}},
            "rollout.truncation_penalty: 0.0 penalises nothing; "
            "use more than 0, or rollout.truncated_turns: keep",
        ),
        (
            {"rollout": {"truncated_turns": "mask", "truncation_penalty": 0.5}},
            "rollout.truncation_penalty: 0.5 has no effect with rollout.truncated_turns: mask; "
            "use rollout.truncated_turns: penalise, or leave the penalty out",
        ),
        (
            {"rollout": {"truncated_turns": "drop"}},
            "rollout.truncated_turns: 'drop' is not a choice; allowed: keep, mask, penalise",
        ),
        (
            {"rollout": {"rollout_timeout": 60, "group_timeout": 30}},
            "rollout.group_timeout: 30.0 ends a group before its rollouts may end (60); "
            "use at least rollout.rollout_timeout, or 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(changes: dict[str, Any], message: str):
    assert message in refusal(changes)


def test_an_evaluation_may_be_greedy_and_take_one_rollout_per_row():
    greedy = {"temperature": 0}
    spec = parse_job(
        SMALLEST
        | {"kind": "evaluation", "batch": {"group_size": 1}}
        | {"sampling_params": greedy, "val_sampling_params": greedy}
    )
    assert spec.val_sampling_params.temperature == 0


def test_an_evaluation_stands_apart_from_training_and_validation():
    spec = parse_job(SMALLEST | {"eval_sampling_params": {"max_tokens": 64}})

    assert spec.eval_sampling_params == SamplingParams(temperature=0, max_tokens=64)
    assert (spec.sampling_params, spec.val_sampling_params) == (SamplingParams(),) * 2
    assert (spec.evaluation.group_size, spec.evaluated_models) == (1, ("base",))


def test_models_to_evaluate_are_folders_beside_the_job_file_names_or_the_base(tmp_path: Path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "base").mkdir()  # the base model's own folder, as like as not
    spec = parse_job(
        SMALLEST | {"evaluation": {"models": ["tuned", "walk/3", "base"]}}, folder=tmp_path
    )
    assert spec.evaluated_models == (str(tmp_path / "tuned"), "walk/3", "base")


def test_scorers_are_read_and_written_back():
    scorers = [
        {"name": "exact", "target": "my.judges:exact"},
        {"name": "judge", "url": "http://127.0.0.1:9/score", "timeout": 5},
    ]
    spec = parse_job(SMALLEST | {"evaluation": {"scorers": scorers}})

    assert spec.evaluation.scorers == (
        ScorerSpec(name="exact", target="my.judges:exact"),
        ScorerSpec(name="judge", url="http://127.0.0.1:9/score", timeout=5.0),
    )
    assert parse_job(as_mapping(spec)) == spec


def judged(*scorers: dict[str, Any]) -> dict[str, Any]:
    return {"evaluation": {"scorers": list(scorers)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluation": {"models": ["walk/3", "base", ""]}},
            "evaluation.models[2]: 'base' is there twice; each model is needed once",
        ),
        (
            {"evaluation": {"success_threshold": ".inf"}},
            "evaluation.success_threshold: '.inf' is not a number",
        ),
        (
            {"evaluation": {"success_threshold": float("nan")}},
            "evaluation.success_threshold: nan is not a finite number",
        ),
        (
            {"evaluation": {"format_pattern": "<answer>(.*"}},
            "evaluation.format_pattern: '<answer>(.*' is not a regular expression: missing ), "
            "unterminated subpattern at position 8; quote special characters with a backslash",
        ),
        (
            {"evaluation": {"pass_k_values": []}},
            "evaluation.pass_k_values: [] is not a list with at least one entry",
        ),
        ({"evaluation": {"models": "base"}}, "evaluation.models: 'base' is not a list"),
        (
            {"evaluation": {"scorers": ["exact"]}},
            "evaluation.scorers[0]: 'exact' is not a block of settings",
        ),
        (
            judged({"name": "a", "target": "m:f"}, {"name": "a", "url": "http://x"}),
            "evaluation.scorers[1].name: 'a' is there twice; each scorer is needed once",
        ),
        (
            judged({"name": "agent", "target": "m:f"}),
            "evaluation.scorers[0].name: 'agent' is the agent's own reward; choose another name",
        ),
        (
            judged({"name": "is/right", "target": "m:f"}),
            "evaluation.scorers[0].name: 'is/right' is not a scorer's name; "
            "use 1 to 40 letters, digits, hyphens and underscores",
        ),
        (
            judged({"name": "a"}),
            "evaluation.scorers[0]: 'a' has neither a target nor a url; set one of them",
        ),
        (
            judged({"name": "a", "target": "m:f", "url": "http://x"}),
            "evaluation.scorers[0]: 'a' has both a target and a url; set one of them",
        ),
        (
            judged({"name": "a", "url": "https://:hidden@here"}),
            "evaluation.scorers[0].url: 'https://...@here' holds a password, which would be shown; "
            "leave it out",
        ),
        (
            judged({"name": "a", "target": "judges"}),
            "evaluation.scorers[0].target: 'judges' names no function; "
            'use "package.module:function"',
        ),
        (
            judged({"name": "a", "url": "localhost:80"}),
            "evaluation.scorers[0].url: 'localhost:80' is no HTTP address; "
            "use http://host:port/path",
        ),
        (
            judged({"name": "a", "target": "m:f", "timeout": 0}),
            "evaluation.scorers[0].timeout: 0.0 is out of range; must be above 0",
        ),
        (
            judged({"nam": "a", "target": "m:f"}),
            "evaluation.scorers[0].nam: 'a' is set, but there is no such setting; "
            "did you mean evaluation.scorers[0].name?",
        ),
        (
            judged({"target": "m:f"}),
            "evaluation.scorers[0].name: None is not a value; the job file must set it",
        ),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused_by_its_setting(
    changes: dict[str, Any], message: str
):
    assert refusal(changes) == message


@pytest.mark.parametrize("missing", ["name", "model", "dataset", "agent"])
def test_what_must_be_given_is_asked_for(missing: str):
    given = {key: value for key, value in SMALLEST.items() if key != missing}
    with pytest.raises(errors.InvalidInput) as refused:
        parse_job(given)
    assert str(refused.value) == f"{missing}: None is not a value; the job file must set it"


def test_paths_are_taken_from_the_folder_of_the_job_file(tmp_path: Path):
    (tmp_path / "adapter").mkdir()
    file = tmp_path / "job.yaml"
    file.write_text(
        "name: walk\n"
        "model: ../base\n"
        "dataset: ./train.jsonl\n"
        "validation_dataset: /data/validation.csv\n"
        "input_adapter: adapter\n"
        "agent: {kind: scripted}\n"
    )
    assert read_job(file) == JobSpec(
        name="walk",
        model=str(tmp_path.parent / "base"),
        dataset=str(tmp_path / "train.jsonl"),
        validation_dataset="/data/validation.csv",
        input_adapter=str(tmp_path / "adapter"),
        agent=AgentSpec(kind=AgentKind.SCRIPTED),
    )


def test_an_input_adapter_that_is_no_folder_is_the_name_of_a_model(tmp_path: Path):
    spec = parse_job(SMALLEST | {"input_adapter": "walk/3"}, folder=tmp_path)
    assert spec == dataclasses.replace(parse_job(SMALLEST), input_adapter="walk/3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "is not YAML: while parsing a flow node"),
        (b"name: \xff", "is not YAML: 'utf-8' codec can't decode byte 0xff in position 6"),
        (b"seed: 1\nname: a\nseed: 2\n", "is not YAML: 'seed' is set twice in"),
        (b"batch: {group_size: 2, group_size: 4}", "is not YAML: 'group_size' is set twice in"),
        (b"", "job: None is not a mapping of settings"),
        (b"- name: walk", "job: [{'name': 'walk'}] is not a mapping of settings"),
    ],
)
def test_a_file_that_is_no_job_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
):
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    with pytest.raises(errors.InvalidInput) as refused:
        read_job(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_job_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(errors.InvalidInput, match=r"cannot be read: .*No such file or directory"):
        read_job(tmp_path / "job.yaml")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*/*.yaml")), ids=str)
def test_the_job_files_of_the_examples_are_valid(file: Path):
    assert read_job(file).name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resume_from": "walk-checkpoints/3", "input_adapter": "walk/3"},
            "resume_from: 'walk-checkpoints/3' is set together with input_adapter (walk/3); "
            "continue a checkpoint, or start anew from an adapter",
        ),
        (
            {"resume_from": "walk-checkpoints/3", "kind": "evaluation"},
            "resume_from: 'walk-checkpoints/3' cannot be for a job of kind evaluation; "
            "name what to evaluate in input_adapter",
        ),
        (
            {"name": "walk-checkpoints"},
            "name: 'walk-checkpoints' ends as the groups of checkpoints do, in '-checkpoints'; "
            "choose another name",
        ),
        (
            {"checkpoints": {"keep_last": -1}},
            "checkpoints.keep_last: -1 is out of range; must be at least 0",
        ),
    ],
)
def test_a_beginning_that_cannot_be_meant_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(errors.InvalidInput) as refused:
        parse_job(SMALLEST | changes)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [1]\nb: *x\n", "aliases are not taken here"),
        ("a: 1\na: 2\n", "set twice"),
        ("[" * 1500, "is not YAML"),
        ('a: "\\udc00"', "half a character"),
    ],
)
def test_a_job_file_that_was_sent_is_refused_for_what_a_file_of_the_disk_might_hold(
    text: str, reason: str
):
    with pytest.raises(errors.InvalidInput, match=reason):
        read_text(text)


def test_a_job_file_that_was_sent_is_read_like_one_of_the_disk():
    assert read_text("name: walk\nbatch: {group_size: 4}\n") == {
        "name": "walk",
        "batch": {"group_size": 4},
    }
