"""A server with something on every page: jobs that ended, one that runs, models, an evaluation."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tokenizers import AddedToken, Tokenizer, trainers

from tests.browser import agents
from tests.families import save_family
from tests.service import Server, serving
from tests.tiny import save_tiny_model
from turnwise.client import Client

TRAINED, EVALUATED, RUNNING, BROKEN = "walkaround", "walkaround-eval", "night-shift", "no-records"
STEPS = 4
ROWS = 24
_BATCH = {"global_batch_size": 4, "group_size": 4}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A server, its files, and what its pages are about."""

    server: Server
    client: Client
    folder: Path
    admin_key: str
    reader_key: str  # may read, and nothing else

    @property
    def url(self) -> str:
        """The server's."""
        return self.server.url

    def rollout(self, job: str = TRAINED, **filters: Any) -> str:
        """The id of the first rollout like that."""
        found = self.client.rollouts(job, **filters)["rollouts"]
        return str(found[0]["rollout_id"])


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """All of it. Places for jobs: one, so that a job that is started while it runs waits."""
    settings = {"TURNWISE_MAX_RUNNING_JOBS": "1", "TURNWISE_MLFLOW": "off"}
    with serving(folder / "data", **settings) as server, server.client() as client:
        made = _save_files(folder)
        client.create_job(_training(TRAINED, made) | {"description": "Words with more vowels."})
        _fail(client, made)
        assert client.wait(TRAINED)["status"] == "COMPLETED", client.job(TRAINED)["message"]
        assert client.wait(BROKEN)["status"] == "FAILED"
        client.create_job(_evaluation(made, client))
        assert client.wait(EVALUATED)["status"] == "COMPLETED", client.job(EVALUATED)["message"]
        client.create_job(_endless(made))
        admin_key = (server.data_dir / "admin.key").read_text().strip()
        _upload(server.url, admin_key, "walkarounds", made["rows"])
        _wait_for_steps(client, RUNNING, 2)
        yield World(
            server=server,
            client=client,
            folder=folder,
            admin_key=admin_key,
            reader_key=client.create_key("reader", actions=["read"])["secret"],
        )


def _save_files(folder: Path) -> Json:
    rows = folder / "rows.jsonl"
    prompts = [f"Aircraft AC{n:02} has landed; walk around it. Row {n}" for n in range(ROWS)]
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    held_out = folder / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[:6]))
    return {"model": str(_save_model(folder / "tiny-qwen3")), "rows": rows, "held_out": held_out}


def _save_model(folder: Path) -> Path:
    """A random model whose vocabulary is the agents' words, so that its replies can be read."""
    save_family(folder, "qwen3")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = [agents.SYSTEM, *agents.FILE_REPORT["findings"], json.dumps(agents.LOOK_UP)]
    texts += ["Aircraft has landed; walk around it. Row 0123456789", "Which component, replaced?"]
    texts += [agents.SHORTER, "user assistant system tool\n{}[]\"'<>/_&-()"]
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    return save_tiny_model(folder, vocab_size=tokenizer.get_vocab_size())


def _training(name: str, made: Json) -> Json:
    return {
        "name": name,
        "model": made["model"],
        "dataset": str(made["rows"]),
        "validation_dataset": str(made["held_out"]),
        "agent": {"kind": "python", "target": "tests.browser.agents:inspect"},
        "batch": _BATCH,
        "schedule": {"max_steps": STEPS, "max_epochs": 99, "val_every": 2},
        "sampling_params": {"max_tokens": 16},
        "val_sampling_params": {"max_tokens": 16},
        "lora": {"rank": 8, "alpha": 16},
        "optimizer": {"learning_rate": 0.005},
        # So that a step learns from the rollouts that were begun in it.
        "async_config": {"max_steps_off_policy": 0},
    }


def _evaluation(made: Json, client: Client) -> Json:
    tuned = str(client.job(TRAINED)["output"])
    return {
        "kind": "evaluation",
        "name": EVALUATED,
        "model": made["model"],
        "dataset": str(made["held_out"]),
        "agent": {"kind": "python", "target": "tests.browser.agents:inspect"},
        "evaluation": {"models": ["base", tuned], "group_size": 2},
        "eval_sampling_params": {"max_tokens": 16},
    }


def _endless(made: Json) -> Json:
    """Runs for as long as anybody looks."""
    return _training(RUNNING, made) | {
        "agent": {"kind": "python", "target": "tests.browser.agents:patient"},
        "batch": {"global_batch_size": 2, "group_size": 4},
        "async_config": {"max_steps_off_policy": 3},
        "schedule": {"max_steps": 1000, "max_epochs": 9999, "val_every": 0, "stop_early": False},
        "optimizer": {"learning_rate": 0.0005},
    }


def _fail(client: Client, made: Json) -> None:
    """A job whose rows are gone when its turn comes."""
    lost = made["rows"].with_name("lost.jsonl")
    lost.write_text(made["rows"].read_text())
    client.create_job(_training(BROKEN, made) | {"dataset": str(lost)})
    lost.unlink()


def _wait_for_steps(client: Client, job: str, steps: int) -> None:
    while client.job(job)["step"] < steps:
        assert client.job(job)["status"] in ("PENDING", "RUNNING"), client.job(job)["message"]
        time.sleep(0.2)


def _upload(url: str, key: str, id: str, rows: Path) -> None:
    """A dataset by name, as Fireworks' clients bring one."""
    address = f"{url}/v1/accounts/default/datasets"
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(headers=headers) as http:
        made = http.post(address, json={"dataset": {}, "datasetId": id})
        sent = http.post(f"{address}/{id}:upload", files={"file": ("r.jsonl", rows.read_bytes())})
        assert made.is_success, made.text
        assert sent.is_success, sent.text
