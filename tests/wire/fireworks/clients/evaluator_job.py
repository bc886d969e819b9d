"""A job with an uploaded evaluator, in a server of its own, run by the server's interpreter.

    python -m tests.wire.fireworks.clients.evaluator_job FOLDER ARCHIVE ENTRY_POINTS ROWS

The archive is built for each of the entry points, a JSON list; ROWS are those of a job with the
first of them, none for no job. Prints one JSON object: how the builds and the job ended, and the
rollouts as they are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn

from tests.service import save_chat_model
from turnwise.app.doors import open_doors
from turnwise.app.rooms import House, open_rooms
from turnwise.control.job_file import parse_job
from turnwise.domain.access import OPERATORS, Principal
from turnwise.domain.evaluator import Evaluator
from turnwise.ports import RolloutQuery
from turnwise.settings import load_settings

OPERATOR = Principal(account_id=OPERATORS)


@contextlib.asynccontextmanager
async def a_house(folder: Path) -> AsyncIterator[House]:
    """A server in this process, on a free port."""
    settings = load_settings(data_dir=folder / "data", mlflow="off")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with open_rooms(settings, url) as house, open_doors(house) as asgi:
            config = uvicorn.Config(asgi, lifespan="off", log_level="warning", ws="none")
            config.load()
            server = uvicorn.Server(config)
            server.lifespan = config.lifespan_class(config)
            await server.startup(sockets=[listening])
            try:
                yield house
            finally:
                await server.shutdown(sockets=[listening])


async def uploaded(house: House, archive: bytes, entry_point: str, evaluator_id: str) -> Evaluator:
    """The evaluator once it is built, or not."""
    evaluators = house.evaluator_side.evaluators
    asked = Evaluator(account_id="", evaluator_id=evaluator_id, entry_point=entry_point)
    await evaluators.create(OPERATOR, asked)

    async def pieces() -> AsyncIterator[bytes]:
        yield archive

    await evaluators.put_archive(OPERATOR, evaluator_id, pieces(), len(archive))
    await evaluators.build(OPERATOR, evaluator_id)
    return await evaluators.settled(OPERATOR, evaluator_id)


async def run_job(house: House, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A training job of one step over these rows."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = parse_job(
        {
            "name": "run",
            "model": str(save_chat_model(folder / "model")),
            "dataset": str(folder / "rows.jsonl"),
            "agent": {"kind": "evaluator", "target": "math", "extra_body": '{"stop": ["~"]}'},
            "batch": {"global_batch_size": len(rows), "group_size": 3},
            "schedule": {"max_steps": 1, "val_every": 0},
            "sampling_params": {"max_tokens": 8},
            "lora": {"rank": 4, "alpha": 8},
            "rollout": {"rollout_timeout": 120},
        }
    )
    job = await house.jobs.create(OPERATOR, spec)
    while not (job := await house.base.store.job(OPERATORS, job.job_id)).status.is_final:
        await asyncio.sleep(0.1)
    found = await house.base.store.rollouts(OPERATORS, RolloutQuery(job_id=job.job_id))
    log = await house.agent_side.logs.entries(OPERATORS, "evaluators/math")
    return {
        "status": job.status.value,
        "message": job.message,
        "rollouts": [
            {
                "status": one.rollout.status.value,
                "rewards": one.rollout.rewards,
                "metrics": dict(one.rollout.metrics),
                "reason": one.rollout.reason,
                "row": one.rollout.row_index,
                "fault": one.rollout.fault and [one.rollout.fault.code, one.rollout.fault.message],
                "turns": one.turns,
                "said": await _said(house, one.rollout.rollout_id),
                "told": [e.text for e in log if e.rollout_id == one.rollout.rollout_id],
            }
            for one in found
        ],
        "printed": "\n".join(e.text for e in log if not e.rollout_id),
        "ledger": await house.base.store.ledger(OPERATORS, job.job_id),
    }


async def _said(house: House, rollout_id: str) -> list[str]:
    record = await house.base.store.trajectory(OPERATORS, rollout_id)
    spoken = [node for node in record.nodes if node.logprobs is not None]
    return [str(node.messages[0]["content"]) for node in spoken]


async def main(folder: Path, archive: Path, entry_points: list[str], rows: Any) -> None:
    """Upload, build, run, tell."""
    async with a_house(folder) as house:
        secrets = house.evaluator_side.secrets
        await secrets.create(OPERATOR, "judge-key", "JUDGE_KEY", "sk-very-secret")
        evaluator_ids = ["math", *(f"other-{n}" for n in range(1, len(entry_points)))]
        builds = [
            await uploaded(house, archive.read_bytes(), entry_point, evaluator_id)
            for entry_point, evaluator_id in zip(entry_points, evaluator_ids, strict=True)
        ]
        told: dict[str, Any] = {"builds": [(each.state.value, each.message) for each in builds]}
        if rows:
            told |= await run_job(house, folder, rows)
        print(json.dumps(told))


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(Path(given[0]), Path(given[1]), json.loads(given[2]), json.loads(given[3])))
