"""The control plane over one world, an account's key, and evaluators that are built at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builders import ACCOUNT
from tests.unit.control.kit import World
from turnwise import errors
from turnwise.access.accounts import Accounts
from turnwise.access.keys import Keyring
from turnwise.access.links import Links
from turnwise.access.vault import Vault
from turnwise.control.audit.audit_trail import AuditTrail
from turnwise.control.audit.witness import Witness
from turnwise.control.browse import Browse
from turnwise.control.models.catalogue import Catalogue
from turnwise.control.named_datasets import NamedDatasets
from turnwise.control.secrets import Secrets
from turnwise.domain.access import ALL_ACTIONS, Action, Principal
from turnwise.domain.audit import Sealer
from turnwise.domain.evaluator import Evaluator, EvaluatorState
from turnwise.wire.fireworks.calls import FireworksRooms
from turnwise.wire.fireworks.door import FireworksDoor
from turnwise.wire.fireworks.observed import Asgi, Observed

Json = dict[str, Any]

HOME = "/v1/accounts/default"
JOBS = f"{HOME}/reinforcementFineTuningJobs"
ROWS = [{"messages": [{"role": "user", "content": f"row {n}"}]} for n in range(4)]


class BuiltAtOnce:
    """Evaluators in memory; an archive that is a gzip builds, anything else does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, str], Evaluator] = {}

    async def create(self, principal: Principal, evaluator: Evaluator) -> Evaluator:
        key = (principal.account_id, evaluator.evaluator_id)
        if key in self._known:
            raise errors.Conflict(f"evaluator {evaluator.evaluator_id!r} exists already")
        self._known[key] = evaluator
        return evaluator

    async def get(self, principal: Principal, evaluator_id: str) -> Evaluator:
        principal.require_all(Action.READ, "evaluators")
        try:
            return self._known[principal.account_id, evaluator_id]
        except KeyError:
            raise errors.NotFound("evaluator", evaluator_id) from None

    async def list(self, principal: Principal) -> list[Evaluator]:
        return [each for (owner, _), each in self._known.items() if owner == principal.account_id]

    async def change(self, principal: Principal, evaluator_id: str, **fields: str) -> Evaluator:
        known = await self.get(principal, evaluator_id)
        return self._keep(dataclasses.replace(known, **dict[str, Any](fields)))

    async def delete(self, principal: Principal, evaluator_id: str) -> None:
        await self.get(principal, evaluator_id)
        del self._known[principal.account_id, evaluator_id]

    async def put_archive(
        self, principal: Principal, evaluator_id: str, pieces: AsyncIterator[bytes], size: int
    ) -> Evaluator:
        known = self._known[principal.account_id, evaluator_id]
        content = b"".join([piece async for piece in pieces])
        key = f"evaluators/{evaluator_id}.tar.gz"
        self.folder.joinpath(key).parent.mkdir(parents=True, exist_ok=True)
        self.folder.joinpath(key).write_bytes(content)
        return self._keep(dataclasses.replace(known, archive=key))

    async def build(self, principal: Principal, evaluator_id: str) -> Evaluator:
        known = await self.get(principal, evaluator_id)
        state, message = EvaluatorState.ACTIVE, "built"
        if not known.archive:
            state, message = EvaluatorState.BUILD_FAILED, "nothing was uploaded"
        elif not self.folder.joinpath(known.archive).read_bytes().startswith(b"\x1f\x8b"):
            state, message = EvaluatorState.BUILD_FAILED, "the archive is not a tar.gz"
        return self._keep(dataclasses.replace(known, state=state, message=message))

    async def build_log(self, principal: Principal, evaluator_id: str) -> str:
        return f"{(await self.get(principal, evaluator_id)).message}\n"

    def activate(self, evaluator_id: str) -> None:
        """As if it had been uploaded and built."""
        known = self._known[ACCOUNT, evaluator_id]
        self._keep(dataclasses.replace(known, state=EvaluatorState.ACTIVE))

    def _keep(self, evaluator: Evaluator) -> Evaluator:
        self._known[evaluator.account_id, evaluator.evaluator_id] = evaluator
        return evaluator


async def _number(account_id: str) -> str:
    return "000000000001"


async def _job_arn(account_id: str, id_or_name: str) -> str:
    return f"arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/{id_or_name}"


class Place:
    """The door over one world, and keys for it."""

    def __init__(self, world: World) -> None:
        self.world = world
        vault = Vault(bytes(32))
        self.keyring = Keyring(world.store, vault, clock=world.clock)
        self.audit = AuditTrail(
            world.store, world.store, Sealer(bytes(32)), world.clock, retention_days=90
        )
        self.secrets = Secrets(world.store, vault, world.clock)
        self.evaluators = BuiltAtOnce(world.folder / "blobs")
        base = world.folder / "models" / "tiny"
        base.mkdir(parents=True)
        (base / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
        self.door = FireworksDoor(
            FireworksRooms(
                url="http://server",
                accounts=Accounts(
                    world.store, self.keyring, find_job=world.store.job, region="us-west-2"
                ),
                holder=self.keyring.holder,
                links=Links(vault, world.clock),
                clock=world.clock,
                resources=world.store,
                blobs=world.blobs,
                jobs=world.jobs,
                browse=Browse(world.store),
                catalogue=Catalogue(world.folder / "models"),
                datasets=NamedDatasets(world.store, world.buckets, world.clock),
                secrets=self.secrets,
                evaluators=self.evaluators,
            ),
            self._observed,
        )

    def _observed(self, app: Asgi) -> Observed:
        witness = Witness(
            self.world.clock, region="us-west-2", account_number=_number, job_arn=_job_arn
        )
        return Observed(app, self.audit, witness)

    async def key(
        self, account: str = ACCOUNT, *, actions: Collection[Action] = ALL_ACTIONS
    ) -> str:
        secret, _ = await self.keyring.create(account, "test", actions=actions)
        return secret

    def client(self, key: str = "") -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.door, raise_app_exceptions=False),
            base_url="http://server",
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )


@pytest.fixture
async def place(world: World) -> Place:
    await world.store.default_account()
    return Place(world)


@pytest.fixture
async def api(place: Place) -> AsyncIterator[httpx.AsyncClient]:
    async with place.client(await place.key()) as client:
        yield client


def rows_text(rows: Collection[Json] = ROWS) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


async def a_dataset(api: httpx.AsyncClient, id: str = "rows", text: str | None = None) -> str:
    """An uploaded dataset's name."""
    made = await api.post(f"{HOME}/datasets", json={"dataset": {}, "datasetId": id})
    assert made.status_code == 200, made.text
    content = rows_text() if text is None else text
    sent = await api.post(
        f"{HOME}/datasets/{id}:upload", files={"file": ("rows.jsonl", content.encode())}
    )
    assert sent.status_code == 200, sent.text
    return str(made.json()["name"])


async def an_evaluator(api: httpx.AsyncClient, place: Place, id: str = "judge") -> str:
    """A built evaluator's name."""
    body = {"evaluator": {"entryPoint": "test_math.py::test_math"}, "evaluatorId": id}
    made = await api.post(f"{HOME}/evaluatorsV2", json=body)
    assert made.status_code == 200, made.text
    place.evaluators.activate(id)
    return str(made.json()["name"])


async def job_body(api: httpx.AsyncClient, place: Place, **more: Any) -> Json:
    """The smallest body of a job, over a dataset and an evaluator that are made for it."""
    dataset, evaluator = await a_dataset(api), await an_evaluator(api, place)
    training = more.pop("trainingConfig", {})
    if isinstance(training, dict):
        training = {"baseModel": "accounts/fireworks/models/tiny"} | training
    return {"dataset": dataset, "evaluator": evaluator, "trainingConfig": training} | more


def message_of(answer: httpx.Response, status: int) -> str:
    """What a refusal says; it is one of the service's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert isinstance(body["code"], int)
    assert body["details"][0]["@type"].endswith("google.rpc.ErrorInfo")
    return str(body["message"])
