"""The learner in a process of its own, as the server uses it."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from tests.tiny import save_tiny_model
from tests.unit.training.samples import batch, conversation, learner_spec, request, scored, train
from turnwise import errors
from turnwise.domain.training import DataPosition
from turnwise.launching.local import LocalLauncher
from turnwise.modeling.fingerprint import verify
from turnwise.training.handle import RemoteLearner
from turnwise.training.learner import TorchLearner


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")


def not_here(_: object) -> NoReturn:
    raise AssertionError("these tests start learners only")


@pytest.fixture
async def launcher() -> AsyncIterator[LocalLauncher]:
    started = LocalLauncher(sampler=not_here, learner=RemoteLearner, archive=not_here)
    yield started
    await started.close()


async def test_a_step_in_another_process_is_the_step_here_bit_for_bit(
    launcher: LocalLauncher, base: Path, tmp_path: Path
) -> None:
    here = TorchLearner(learner_spec(base))
    train(here, range(2))
    position = DataPosition(next=4, ahead=(6,))
    checkpoint = here.save(1, str(tmp_path / "here"), position)
    there = await launcher.learner(learner_spec(base))
    assert await there.restore(checkpoint) == position

    tokens = conversation(9).tokens
    assert np.array_equal(await there.score(tokens, 0.5), here.score(tokens, 0.5))
    rows = [scored(here, conversation(i, policy_step=2)) for i in range(4)]
    mine = here.step(request(2, batch(rows[:2]), batch(rows[2:])))
    theirs = await there.step(request(2, batch(rows[:2]), batch(rows[2:])))
    assert (theirs.metrics, theirs.mismatch) == (mine.metrics, mine.mismatch)
    saved = await there.save(2, str(tmp_path / "there"), position)
    assert saved.sha256 == here.save(2, str(tmp_path / "here_too"), position).sha256


async def test_a_full_disk_is_reported_and_harms_no_earlier_checkpoint(
    launcher: LocalLauncher, base: Path, tmp_path: Path
) -> None:
    learner = await launcher.learner(learner_spec(base))
    first = await learner.save(0, str(tmp_path / "step_0"))
    (pid,) = launcher.pids
    unlimited = resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, unlimited))
    for folder in ("step_1", "step_0"):
        with pytest.raises(errors.StorageFull, match=f"no room for checkpoint .*{folder}"):
            await learner.save(1, str(tmp_path / folder))
    assert [path.name for path in tmp_path.iterdir()] == ["step_0"]
    verify(Path(first.path), first.sha256)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
    again = await learner.save(1, str(tmp_path / "step_1"))
    assert again.adapter.adapter_id == first.adapter.adapter_id


async def test_a_model_that_cannot_be_loaded_is_an_error_of_every_call(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    learner = await launcher.learner(learner_spec(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(errors.InvalidInput, match=r"nowhere.* does not exist; give the folder"):
            await learner.save(-1, str(tmp_path / "start"))


async def test_the_process_leaves_in_the_middle_of_a_step_when_its_parent_does(
    launcher: LocalLauncher, base: Path
) -> None:
    learner = await launcher.learner(learner_spec(base))
    await learner.score(conversation(0).tokens)
    rows = [conversation(i, turns=40) for i in range(400)]
    step = asyncio.create_task(learner.step(request(0, batch(rows), parity_limit=None)))
    await asyncio.sleep(0.5)
    assert not step.done()
    process = launcher._children[-1][0]
    await launcher.close()
    assert process.returncode == 0  # it left by itself; a killed one has -9
    with pytest.raises(errors.ProcessDied):
        await step


def test_the_handle_needs_no_torch() -> None:
    code = "import sys, turnwise.training.handle; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
