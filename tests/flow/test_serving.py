"""What was trained is served, as its base is, and taken away: a real server, its engine, the
public clients.

The same greedy text must come from the server, from plain peft on the exported adapter, and from
plain transformers on the exported merged model.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests import builders
from tests.families import WEATHER
from tests.numerics.test_engine import with_adapter
from tests.service import Server, save_chat_model, serving
from turnwise import cli, errors
from turnwise.control.jobs import status_event
from turnwise.domain.job import History, JobStatus, Secondary
from turnwise.domain.rollout import Policy
from turnwise.domain.training import LoraSpec
from turnwise.modeling.adapters import write_adapter
from turnwise.modeling.base import load_base
from turnwise.modeling.lora import attach_lora, lora_files
from turnwise.ports import FinishedStep, ModelPackage
from turnwise.rendering.family import load_renderer
from turnwise.storage.folder import DataFolder
from turnwise.storage.sql import SqlStore
from turnwise.training.checkpoint import folder_sha256

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
LENGTH = 24


def save_adapter(base: Path, folder: Path, seed: int) -> str:
    """An adapter that changes the model clearly; its id."""
    lora = LoraSpec(rank=4, alpha=8.0)
    layers = attach_lora(load_base(base), lora, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        layer.lora_b.data.normal_(0.0, 0.1, generator=generator)
    files = lora_files(layers, lora)
    write_adapter(folder, files, str(base))
    return files.id


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


async def register(data: Path, base: Path) -> None:
    """A finished job's models: walk/1, the damaged walk/2, and the checkpoint beside the first."""
    folder = DataFolder.open(data)
    store = SqlStore.open(folder.database)
    account = (await store.default_account()).account_id
    spec = builders.spec(model=str(base))
    await store.create_job(builders.job(account_id=account, spec=spec))
    blobs = folder.blobs / "walk"

    def package(group: str, version: int, kind: str, sha256: str) -> ModelPackage:
        return ModelPackage(
            package_id=f"package_{group}_{version}",
            account_id=account,
            group=group,
            version=version,
            kind=kind,
            path=str(blobs / f"{group}_{version}"),
            sha256=sha256,
            base_model=str(base),
            job_id="job_walk",
            step=0,
            created_at=0.0,
        )

    first = save_adapter(base, blobs / "walk_1", 1)
    second = save_adapter(base, blobs / "walk_2", 2)
    flip_a_bit(blobs / "walk_2" / "adapter_model.safetensors")
    checkpoint = blobs / "walk-checkpoints_1"
    save_adapter(base, checkpoint / "adapter", 1)
    (checkpoint / "state.safetensors").write_bytes(bytes(1000))
    done = FinishedStep(
        step=0,
        policy=Policy(),
        groups=(),
        bins={},
        checkpoint=None,
        packages=(
            package("walk", 1, "adapter", first),
            package("walk", 2, "adapter", second),
            package("walk-checkpoints", 1, "checkpoint", folder_sha256(checkpoint)),
        ),
        events=(),
    )
    await store.finish_step(account, "job_walk", done)
    await store.append(account, "job_walk", [status_event(JobStatus.STOPPED, Secondary.STOPPED)])
    await store.close()
    folder.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("server") / "data"
    asyncio.run(register(data, base))
    (data / "models").mkdir()
    (data / "models" / "tiny").symlink_to(base)
    with serving(data) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    key = (server.data_dir / "admin.key").read_text().strip()
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=60) as opened:
        yield opened


def export(server: Server, *args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--data-dir", str(server.data_dir), "models", "export", *args, "--json"])
    assert ended.value.code == 0


def said_by_server(client: OpenAI, model: str) -> list[str]:
    """The greedy reply's tokens, each as its text."""
    reply = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=LENGTH, logprobs=True
    )
    assert reply.choices[0].logprobs is not None
    return [token.token for token in reply.choices[0].logprobs.content or []]


def said_by(model: PreTrainedModel, base: Path, tokenizer_folder: Path) -> list[str]:
    """The same from plain `generate`."""
    renderer = load_renderer(base, History.TEMPLATE)
    prompt = torch.from_numpy(renderer.render(MESSAGES, ())).long()[None]
    generated = model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=list(renderer.stop_ids),
        pad_token_id=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return [tokenizer.decode([token]) for token in generated[0, prompt.shape[1] :].tolist()]


def test_server_peft_export_and_merged_export_give_the_same_greedy_text(
    server: Server, client: OpenAI, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    served = said_by_server(client, "walk/1")
    by_arn = said_by_server(client, "arn:aws:sagemaker:us-west-2:000000000001:model-package/walk/1")
    by_checkpoint = said_by_server(client, "walk-checkpoints")
    by_base = said_by_server(client, "accounts/fireworks/models/tiny")
    export(server, "walk/1", str(tmp_path / "adapter"))
    export(server, "walk/1", str(tmp_path / "merged"), "--merged")
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [facts["merged"] for facts in shown] == [False, True]
    untuned = said_by(AutoModelForCausalLM.from_pretrained(base), base, base)
    tuned = said_by(with_adapter(base, tmp_path / "adapter"), base, base)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    merged = said_by(whole, base, tmp_path / "merged")

    assert served == by_arn == by_checkpoint == tuned == merged
    assert len(set(served)) > 3
    assert served != untuned == by_base == said_by_server(client, "tiny")
    assert whole.dtype is torch.float32
    files = {file.name for file in (tmp_path / "merged").iterdir()}
    assert files == {file.name for file in base.iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == {"adapter", "merged"}


def test_a_streamed_reply_with_tools_on_offer_adds_up_to_the_whole_one(client: OpenAI):
    ask: dict[str, Any] = {
        "model": "walk/1",
        "messages": MESSAGES,
        "tools": [WEATHER],
        "max_tokens": LENGTH,
        "seed": 5,
    }
    whole = client.chat.completions.create(**ask)
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    details = chunks[-1].usage.prompt_tokens_details
    assert details is not None
    assert details.cached_tokens is not None
    assert details.cached_tokens > 0  # the first call's prompt is the second one's


def test_what_can_be_asked_for_is_listed(client: OpenAI):
    names = [model.id for model in client.models.list()]
    registered = ["walk-checkpoints", "walk", "walk-checkpoints/1", "walk/2", "walk/1"]
    assert names == [*registered, "tiny"]


def test_an_adapter_of_ones_own_is_served_until_it_is_deleted(
    server: Server, client: OpenAI, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def turnwise(*args: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--data-dir", str(server.data_dir), *args])
        assert ended.value.code == 0
        return capsys.readouterr().out

    turnwise("models", "add-base", str(base), "--name", "tiny")
    keys = dict(line.split()[1].split("=") for line in turnwise("env").splitlines())
    session = boto3.Session(
        keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name=keys["AWS_REGION"]
    )
    s3, sagemaker = (session.client(name, endpoint_url=server.url) for name in ("s3", "sagemaker"))
    where = {"LocationConstraint": keys["AWS_REGION"]}
    s3.create_bucket(Bucket="adapters", CreateBucketConfiguration=where)
    save_adapter(base, tmp_path / "own", 3)
    for file in (tmp_path / "own").iterdir():
        s3.upload_file(str(file), "adapters", f"own/{file.name}")
    sagemaker.create_model_package_group(ModelPackageGroupName="own")
    source = {"S3Uri": "s3://adapters/own/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {
        "ModelDataSource": {"S3DataSource": source},
        "BaseModel": {"HubContentName": "tiny"},
    }
    sagemaker.create_model_package(
        ModelPackageGroupName="own", InferenceSpecification={"Containers": [container]}
    )
    tuned = said_by(with_adapter(base, tmp_path / "own"), base, base)
    assert said_by_server(client, "own/1") == tuned != said_by_server(client, "walk/1")
    sagemaker.delete_model_package(ModelPackageName="own/1")
    with pytest.raises(openai.NotFoundError):
        said_by_server(client, "own/1")


def test_a_damaged_model_says_so_and_the_others_go_on(
    server: Server, client: OpenAI, tmp_path: Path
):
    with pytest.raises(openai.InternalServerError) as refused:
        said_by_server(client, "walk/2")
    assert refused.value.code == "model_corrupted"
    assert "model walk/2 is damaged: the files at" in str(refused.value)
    with server.client() as ours:
        for merged in (False, True):
            with pytest.raises(errors.Corrupted, match="model walk/2 is damaged"):
                ours.export_model("walk/2", tmp_path / "tuned", merged=merged)
    assert list(tmp_path.iterdir()) == []
    assert len(said_by_server(client, "walk/1")) > 3


def test_after_its_engine_was_killed_the_next_call_is_answered(server: Server, client: OpenAI):
    before = said_by_server(client, "walk/1")
    (engine,) = server.children("engine")
    os.kill(engine, signal.SIGKILL)
    assert said_by_server(client, "walk/1") == before  # at the client's first retry at the latest
    assert server.children("engine") != [engine]
    assert server.children("merge") == []
