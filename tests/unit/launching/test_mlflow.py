"""The MLflow process: started once, ended with its parent, started again when it has died."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from turnwise import errors
from turnwise.launching import mlflow as launching
from turnwise.launching.mlflow import MlflowServers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("run", "logs"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


def servers(folder: Path, *, is_on: bool = True) -> MlflowServers:
    return MlflowServers(folder / "mlflow", run=folder / "run", logs=folder / "logs", is_on=is_on)


#: Stands in for MLflow, which takes seconds to be imported: it listens, and leaves as the real one.
_CHILD = """
import os, socket, sys, threading
def leave():
    while os.read(int(sys.argv[1]), 1):
        pass
    os._exit(0)
threading.Thread(target=leave, daemon=True).start()
os.umask(0o077)
{before}
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[2])
listening.listen()
while True:
    listening.accept()[0].close()
"""


@pytest.fixture
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in MLflow's place; write another to it to change what is started."""
    program = folder / "program.py"
    program.write_text(_CHILD.format(before=""))
    python = folder / "python"  # sys.executable, called as `python -m module FD SOCKET FOLDER`
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o700)
    monkeypatch.setattr(launching.sys, "executable", str(python))
    return program


async def test_nothing_is_started_before_it_is_asked_for(folder: Path, stand_in: Path) -> None:
    made = servers(folder)
    assert made.pids == []
    await made.close()


async def test_who_asks_at_once_is_given_the_same_server(folder: Path, stand_in: Path) -> None:
    made = servers(folder)
    addresses = await asyncio.gather(*(made.address("acc_a") for _ in range(5)))
    assert len(set(addresses)) == 1
    assert len(made.pids) == 1
    mode = stat.S_IMODE(Path(addresses[0]).stat().st_mode)
    assert mode & 0o077 == 0
    assert stat.S_IMODE((folder / "mlflow" / "acc_a").stat().st_mode) == 0o700
    other = await made.address("acc_b")
    assert other != addresses[0]
    assert len(made.pids) == 2
    pids = made.pids
    await made.close()
    assert not any(is_running(pid) for pid in pids)
    assert list((folder / "run").iterdir()) == []


async def test_a_server_that_was_killed_is_started_again_when_needed(
    folder: Path, stand_in: Path
) -> None:
    made = servers(folder)
    await made.address("acc_a")
    first = made.pids[0]
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(30):
        while made.pids:
            await asyncio.sleep(0.01)
    await made.address("acc_a")
    assert made.pids[0] != first
    await made.close()


async def test_a_start_that_fails_is_said_and_not_tried_again_at_once(
    folder: Path, stand_in: Path
) -> None:
    stand_in.write_text("import sys; sys.exit('no module named so')")
    made = servers(folder)
    with pytest.raises(errors.Unavailable, match="ended with status 1"):
        await made.address("acc_a")
    with pytest.raises(errors.Unavailable, match=r"mlflow-acc_a\.log") as refused:
        await made.address("acc_a")
    assert 0 < (refused.value.retry_after_s or 0) <= launching.FIRST_PAUSE_S
    assert "no module named so" in (folder / "logs" / "mlflow-acc_a.log").read_text()
    await made.close()


async def test_a_server_that_does_not_answer_in_time_is_ended(
    folder: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "START_TIMEOUT_S", 0.3)
    stand_in.write_text(_CHILD.format(before="import time; time.sleep(60)"))
    made = servers(folder)
    with pytest.raises(errors.Unavailable, match="in time"):
        await made.address("acc_a")
    assert made.pids == []
    await made.close()


async def test_a_data_folder_with_a_long_path_has_its_socket_elsewhere(
    folder: Path, stand_in: Path
) -> None:
    run = folder / ("long" * 30)
    run.mkdir()
    made = MlflowServers(folder / "mlflow", run=run, logs=folder / "logs")
    address = await made.address("acc_a")
    assert len(address) < 108
    assert stat.S_IMODE(Path(address).parent.stat().st_mode) == 0o700
    await made.close()
    assert not Path(address).parent.exists()


async def test_a_server_without_mlflow_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.Unavailable, match="TURNWISE_MLFLOW=auto"):
        await servers(folder, is_on=False).address("acc_a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.Unavailable, match=r"turnwise\[mlflow\]"):
        await servers(folder).address("acc_a")


def test_a_killed_server_takes_its_mlflow_with_it(folder: Path) -> None:
    """The real process: it watches its parent before it imports anything that takes long."""
    code = f"""
        import asyncio
        from pathlib import Path
        from turnwise.launching.mlflow import MlflowServers

        async def main():
            folder = Path({str(folder)!r})
            made = MlflowServers(folder / "mlflow", run=folder / "run", logs=folder / "logs")
            made.start("acc_a")
            while not made.pids:
                await asyncio.sleep(0.01)
            print(made.pids[0], flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    end = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_artifacts_lie_in_the_servers_own_folder_however_their_place_is_written(
    folder: Path,
) -> None:
    program = """
        import sys
        from pathlib import Path
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from turnwise.launching.mlflow_child import _confine

        artifacts = Path(sys.argv[1])
        _confine(artifacts)
        print(get_artifact_repository(f"file://{artifacts}/1/x").artifact_dir)
        for place in ("..", "%2e%2e", "1/%2E./%2e.", "1/%2e%2e%2f..", "x%3f/../.."):
            for uri in (f"file://{artifacts}/{place}/other", f"{artifacts}/{place}/other"):
                try:
                    print("open", get_artifact_repository(uri).artifact_dir)
                except MlflowException:
                    pass
    """
    artifacts = folder / "artifacts"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(artifacts)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n") == [f"{artifacts}/1/x", ""]
