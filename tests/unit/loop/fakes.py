"""What surrounds a loop in its tests: a clock that stands still, a gateway and processes of air."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests import builders
from turnwise import errors
from turnwise.domain.rollout import (
    Fault,
    FinishReason,
    Floats,
    Policy,
    Rollout,
    RolloutStatus,
    Tokens,
    Trajectory,
)
from turnwise.domain.training import (
    Adapter,
    Checkpoint,
    DataPosition,
    Mismatch,
    StepRequest,
    StepResult,
)
from turnwise.ports import AgentRequest, Chunk, SampleRequest, SamplerInfo, SamplerStats
from turnwise.storage.sql import SqlStore

PENDING, READY = RolloutStatus.PENDING, RolloutStatus.READY


class FakeClock:
    """Time that only `advance` moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._count), future))
        self.advance(0.0)
        await future

    @property
    def waits(self) -> list[float]:
        """When those who sleep now will wake, in order."""
        return sorted(at for at, _, future in self._sleepers if not future.done())

    def advance(self, seconds: float) -> None:
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


async def until(seen: Callable[[], Any] | Callable[[], Awaitable[Any]]) -> Any:
    """Look again and again until something is there, at most for a few seconds."""
    async with asyncio.timeout(30):
        while True:
            found = seen()
            found = await found if isinstance(found, Awaitable) else found
            if found:
                return found
            await asyncio.sleep(0.001)


def names() -> Callable[[str], str]:
    """Ids that count: group_0, rollout_0, rollout_1 ..."""
    counts: Counter[str] = Counter()

    def new_id(prefix: str) -> str:
        counts[prefix] += 1
        return f"{prefix}_{counts[prefix] - 1}"

    return new_id


class FakeGateway:
    """`ports.Rollouts`, and what agents call: each chat request is a turn of two tokens."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._closed: dict[str, asyncio.Future[None]] = {}
        self._turns: Counter[str] = Counter()
        self.rollouts: dict[str, Rollout] = {}
        self.policies: list[Policy] = []
        self.finish_reason = FinishReason.STOP

    # for the loop
    def publish(self, job_id: str, policy: Policy) -> None:
        self.policies.append(policy)

    async def open(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            self.rollouts[rollout.rollout_id] = rollout
            self._closed[rollout.rollout_id] = asyncio.get_running_loop().create_future()
        await self._store.open_rollouts(rollouts)

    async def closed(self, rollout_id: str) -> Trajectory:
        await asyncio.shield(self._closed[rollout_id])
        return await self._store.trajectory(builders.ACCOUNT, rollout_id)

    async def fail(self, rollout_id: str, fault: Fault) -> None:
        try:
            await self._move(rollout_id, (PENDING, READY), RolloutStatus.FAILED, fault=fault)
        except errors.Conflict:
            return
        self._close(rollout_id)

    async def add_metrics(self, rollout_id: str, metrics: Mapping[str, float]) -> None:
        rollout = await self._store.rollout(rollout_id)
        await self._move(rollout_id, tuple(RolloutStatus), rollout.status, metrics=metrics)

    # for agents
    async def __call__(
        self, request: AgentRequest, path: str, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        rollout_id = request.rollout_id
        if path == "/v1/chat/completions":
            return await self._chat(self.rollouts[rollout_id])
        if path == "/complete-rollout":
            status = READY if body["Status"] == "ready" else RolloutStatus.FAILED
            await self._move(rollout_id, (PENDING,), status)
            if status is RolloutStatus.FAILED:
                self._close(rollout_id)
        else:
            rewards = tuple(body["Rewards"])
            await self._move(rollout_id, (READY,), RolloutStatus.REWARDED, rewards=rewards)
            self._close(rollout_id)
        return {}

    async def close(self) -> None:
        pass

    async def _chat(self, rollout: Rollout) -> Mapping[str, Any]:
        index = self._turns[rollout.rollout_id]
        self._turns[rollout.rollout_id] += 1
        policy = rollout.policy or self.policies[-1]
        nodes, turn = builders.turn_with_nodes(
            index,
            policy=policy,
            sampling=rollout.sampling,
            finish_reason=self.finish_reason,
        )
        await self._store.commit_turn(rollout.account_id, rollout.rollout_id, nodes, turn)
        return {"choices": [{"message": {"role": "assistant", "content": f"answer {index}"}}]}

    async def _move(
        self,
        rollout_id: str,
        expected: Sequence[RolloutStatus],
        status: RolloutStatus,
        **given: Any,
    ) -> None:
        account = self.rollouts[rollout_id].account_id
        await self._store.move_rollout(account, rollout_id, expected, status=status, **given)

    def _close(self, rollout_id: str) -> None:
        if not self._closed[rollout_id].done():
            self._closed[rollout_id].set_result(None)


def write_adapter_files(folder: Path) -> None:
    """A LoRA adapter of one weight, in the files' own formats."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"r": 1, "lora_alpha": 2.0, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": np.ones((1, 2), np.float32)}, folder / "adapter_model.safetensors")


class FakeLearner:
    """Counts its updates: that number is its whole state and the name of its adapter."""

    def __init__(self) -> None:
        self.updates = 0
        self.requests: list[StepRequest] = []
        self.may_step = asyncio.Event()
        self.may_step.set()
        self.breaks: dict[int, errors.TurnwiseError] = {}  # at which save

    async def step(self, request: StepRequest) -> StepResult:
        self.requests.append(request)
        await self.may_step.wait()
        self.updates += len(request.mini_batches)
        samples = [w.sample for batch in request.mini_batches for w in batch.samples]
        ages = {request.step - int(p) for s in samples for p in s.policy_steps[s.trained]}
        return StepResult(
            step=request.step,
            updates=len(request.mini_batches),
            trained_tokens=sum(sample.num_trained for sample in samples),
            metrics={"training/loss": 0.0},
            mismatch=tuple(
                Mismatch(age=age, tokens=1, mean=0.0, max=0.0, k3=0.0, ess=1.0)
                for age in sorted(ages)
            ),
            seconds=0.0,
        )

    async def save(self, step: int, folder: str, position: DataPosition) -> Checkpoint:
        if error := self.breaks.get(step):
            raise error
        write_adapter_files(Path(folder) / "adapter")
        state = {"updates": self.updates, "next": position.next, "ahead": position.ahead}
        (Path(folder) / "state.safetensors").write_text(json.dumps(state))
        adapter = Adapter(adapter_id=f"adapter-{self.updates}", path=f"{folder}/adapter")
        return Checkpoint(step=step, path=folder, sha256=builders.ZERO_SHA256, adapter=adapter)

    async def restore(self, checkpoint: Checkpoint) -> DataPosition:
        file = Path(checkpoint.path) / "state.safetensors"
        if not file.exists():
            raise errors.Corrupted(f"{checkpoint.path} is not complete")
        state = json.loads(file.read_text())
        self.updates = state["updates"]
        return DataPosition(next=state["next"], ahead=tuple(state["ahead"]))

    async def score(self, tokens: Tokens, temperature: float = 1.0) -> Floats:
        return np.full(len(tokens), -float(self.updates), dtype=np.float32)

    async def close(self) -> None:
        pass


class FakeSampler:
    """Scores as `FakeLearner` does; `is_stale` makes it score as if it loaded nothing."""

    def __init__(self) -> None:
        self.adapters: set[str] = set()
        self.sampled_logprobs = True
        self.is_stale = False
        self.error = 0.0

    async def lost(self) -> None:
        await asyncio.Event().wait()

    async def info(self) -> SamplerInfo:
        return SamplerInfo(
            model="tiny",
            vocab_size=512,
            max_length=128,
            max_slots=8,
            dtype="float32",
            deterministic=True,
            sampled_logprobs=self.sampled_logprobs,
        )

    async def load(self, adapter_id: str, path: str) -> None:
        self.adapters.add(adapter_id)

    async def retire(self, adapter_id: str) -> None:
        self.adapters.discard(adapter_id)

    async def generate(self, request: SampleRequest) -> AsyncIterator[Chunk]:
        raise NotImplementedError
        yield

    async def score(
        self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0
    ) -> Floats:
        updates = 0.0 if self.is_stale else float((adapter_id or "-0").split("-")[1])
        return np.full(len(tokens), self.error - updates, dtype=np.float32)

    async def stats(self) -> SamplerStats:
        return SamplerStats()

    async def close(self) -> None:
        pass


class FakeBlobs:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    async def delete(self, prefix: str) -> None:
        path = self._folder / prefix
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
