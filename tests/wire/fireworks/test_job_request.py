"""What a job is asked for with -> the job file. Pure."""

from typing import Any

import pytest

from turnwise import errors
from turnwise.control.job_file import parse_job
from turnwise.domain.training import Aggregation, LossName
from turnwise.wire.fireworks.faults import Refused, fault
from turnwise.wire.fireworks.job_request import (
    Resolved,
    job_file,
    kept_words,
    read_request,
)

FOUND = Resolved(
    model="/models/tiny", dataset="s3://turnwise-datasets/rows/", rows=4, evaluator="e"
)


def body(**more: Any) -> dict[str, Any]:
    training = more.pop("trainingConfig", {})
    training = {"baseModel": "tiny"} | training if isinstance(training, dict) else training
    return {"dataset": "rows", "evaluator": "e", "trainingConfig": training} | more


@pytest.mark.parametrize(
    ("method", "bounds", "kl", "aggregation", "loss"),
    [
        ("METHOD_UNSPECIFIED", (0.8, 1.2), 0.001, Aggregation.TOKEN_MEAN, LossName.PPO),
        ("GRPO", (0.8, 1.2), 0.001, Aggregation.TOKEN_MEAN, LossName.PPO),
        ("DAPO", (0.8, 1.28), 0.0, Aggregation.TOKEN_MEAN, LossName.PPO),
        ("GSPO_TOKEN", (0.9997, 1.0004), 0.0, Aggregation.ROLLOUT_MEAN, LossName.GSPO),
        ("gspo-token", (0.9997, 1.0004), 0.0, Aggregation.ROLLOUT_MEAN, LossName.GSPO),
    ],
)
def test_a_loss_method_is_the_algorithm_with_the_documented_bounds(
    method: str,
    bounds: tuple[float, float],
    kl: float,
    aggregation: Aggregation,
    loss: LossName,
):
    asked = read_request(body(lossConfig={"method": method}))
    algorithm = parse_job(job_file("walk", asked, FOUND)).algorithm
    assert (algorithm.clip_low_threshold, algorithm.clip_high_threshold) == bounds
    assert (algorithm.kl_coef, algorithm.aggregation, algorithm.loss_fn) == (kl, aggregation, loss)


def test_an_extra_body_goes_with_the_evaluators_model_calls():
    text = '{"stop": ["\\n"]}'
    asked = read_request(body(inferenceParameters={"extraBody": text}))
    assert parse_job(job_file("walk", asked, FOUND)).agent.extra_body == text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"trainingConfig": {"warmStartFrom": "accounts/default/models/x"}},
            "exactly one of base_model and warm_start_from must be set",
        ),
        ({"trainingConfig": {"baseModel": ""}}, "and neither is"),
        (
            {"lossConfig": {"method": "DAPO", "klBeta": 0.1}},
            "loss_config.kl_beta must be 0/unset when method is DAPO",
        ),
        (
            {"lossConfig": {"method": "GSPO_TOKEN", "klBeta": 0.1}},
            "loss_config.kl_beta must be 0/unset when method is GSPO_TOKEN",
        ),
        (
            {"trainingConfig": {"learningRate": 0.01}},
            "Learning rate 1e-2 outside valid range [1e-5, 5e-4]",
        ),
        (
            {"inferenceParameters": {"responseCandidatesCount": 1}},
            "inference_parameters.response_candidates_count: 1",
        ),
        ({"inferenceParameters": {"extraBody": "{"}}, "inference_parameters.extra_body: '{'"),
        ({"inferenceParameters": {"temperature": 0}}, "inference_parameters.temperature: 0"),
        ({"trainingConfig": {"epochs": 11}}, "training_config.epochs: 11 is out of range"),
        ({"trainingConfig": {"epochs": "two"}}, "training_config.epochs: 'two' is not a number"),
        ({"trainingConfig": {"loraRank": 5}}, "training_config.lora_rank: 5 is not a choice"),
        ({"trainingConfig": []}, "training_config: [] is not an object"),
        ({"chunkSize": 20_000}, "chunk_size: 20000 is out of range"),
        ({"lossConfig": {"method": "ORPO"}}, "loss_config.method: 'ORPO' is not a choice"),
        ({"mcpServer": "x"}, "mcp_server is set, but"),
        ({"dataset": ""}, "dataset: '' is not set"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(more: dict[str, Any], said: str):
    with pytest.raises((errors.InvalidInput, Refused)) as caught:
        read_request(body(**more))
    assert said in str(caught.value)
    assert fault(caught.value)[0] == 400


def test_a_weight_of_the_divergence_is_taken_as_it_is():
    asked = read_request(body(lossConfig={"method": "GRPO", "klBeta": 0.02}))
    assert parse_job(job_file("walk", asked, FOUND)).algorithm.kl_coef == 0.02


@pytest.mark.parametrize(
    ("chunk", "rows", "batch", "steps"),
    [(0, 300, 300, 2), (0, 500, 200, 6), (-1, 500, 500, 2), (100, 250, 100, 6), (100, 3, 3, 2)],
)
def test_steps_are_chunks_of_the_rows_in_each_epoch(chunk: int, rows: int, batch: int, steps: int):
    asked = read_request(body(chunkSize=chunk, trainingConfig={"epochs": 2}))
    found = Resolved(model="/m", dataset="s3://turnwise-datasets/rows/", rows=rows, evaluator="e")
    spec = parse_job(job_file("walk", asked, found))
    assert (spec.batch.global_batch_size, spec.schedule.max_steps) == (batch, steps)


def test_samples_per_batch_are_updates_per_step():
    training = {"batchSizeSamples": 5, "gradientAccumulationSteps": 2}
    asked = read_request(body(trainingConfig=training))
    # 4 rows x 8 rollouts, 10 to an update.
    assert parse_job(job_file("walk", asked, FOUND)).batch.updates_per_step == 4


def test_held_back_rows_are_validated_once_an_epoch():
    asked = read_request(body(chunkSize=2))
    found = Resolved(
        model="/m",
        dataset="s3://turnwise-datasets/rows/",
        rows=4,
        evaluator="e",
        validation_dataset="s3://turnwise-datasets/held/",
    )
    spec = parse_job(job_file("walk", asked, found))
    assert spec.schedule.val_every == 2
    assert spec.val_sampling_params == spec.sampling_params


def test_an_adapter_that_is_gone_on_from_keeps_its_shape():
    shape = {"rank": 6, "alpha": 3.0, "target_modules": ["q_proj"]}
    found = Resolved(
        model="/m",
        dataset="s3://turnwise-datasets/rows/",
        rows=4,
        evaluator="e",
        input_adapter="walker/2",
        lora=shape,
    )
    asked = read_request(
        {"dataset": "rows", "evaluator": "e", "trainingConfig": {"warmStartFrom": "walker"}}
    )
    lora = parse_job(job_file("walk", asked, found)).lora
    assert (lora.rank, lora.alpha, lora.target_modules) == (6, 3.0, ("q_proj",))


def test_a_key_is_a_secret_by_its_id_and_not_among_the_words_that_are_kept():
    wandb = {"enabled": True, "project": "p", "entity": "e", "apiKey": "very-secret", "runId": "r"}
    given = body(wandbConfig=wandb)
    found = Resolved(
        model="/m",
        dataset="s3://turnwise-datasets/rows/",
        rows=4,
        evaluator="e",
        wandb_secret="wandb-api-key",
    )
    assert job_file("walk", read_request(given), found)["tracking"]["wandb"] == {
        "enabled": True,
        "project": "p",
        "entity": "e",
        "run_id": "r",
        "api_key_secret": "wandb-api-key",
    }
    assert "apiKey" not in kept_words(given)["wandbConfig"]
    assert "very-secret" not in str(kept_words(given))


@pytest.mark.parametrize("wandb", ["very-secret", {"enabled": True, "apiKey": ["very-secret"]}])
def test_a_key_that_is_sent_wrongly_is_not_repeated(wandb: object):
    with pytest.raises(errors.InvalidInput, match="wandb_config") as raised:
        read_request(body(wandbConfig=wandb))
    assert "very-secret" not in str(raised.value)
