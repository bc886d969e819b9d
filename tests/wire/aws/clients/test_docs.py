"""docs/sagemaker.md as a session: its blocks, in order, against a real server with a tiny model."""

from __future__ import annotations

import base64
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.wire.aws.clients.service import ROOT, SERVER_PYTHON, Server, client, save_model

PAGE = ROOT / "docs" / "sagemaker.md"
#: Of the page's blocks, what the session fixture has done already.
DONE_BEFORE = "turnwise serve\n"
END = "---- the block has ended ----"
ENDED = re.compile(rf"^{END} (\d+)\n", re.MULTILINE)
#: A Python session as a notebook's: a block per line, as JSON; what it raised is printed.
KERNEL = f"""
import json, sys, traceback
names = {{"__name__": "__main__"}}
for line in sys.stdin:
    status = 0
    try:
        exec(compile(json.loads(line), "a block of the page", "exec"), names)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        status = 1
    print("\\n{END}", status, flush=True)
"""
RECIPE = {
    "training": {
        "global_batch_size": {"default": 1, "choices": [1]},
        "group_size": {"default": 2, "min": 2},
        "sampling_max_tokens": {"default": 8, "min": 1},
        "val_every": {"default": 0},
        "lora_rank": {"default": 4, "min": 1},
        "lora_alpha": {"default": 8, "min": 1},
        "max_steps_off_policy": {"default": 0},
    },
    "evaluation": {"max_tokens": {"default": 8, "min": 1}},
}


class Session:
    """A process that is given blocks and says when each has ended, and how."""

    def __init__(self, command: list[str], env: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(env),
            cwd=folder,
            start_new_session=True,  # so that what a block leaves running ends with it
        )

    def run(self, text: str, timeout_s: float = 240.0) -> str:
        """Run a block; what it printed. Fails the test if the block fails."""
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()
        printed = self._until_end(timeout_s)
        said, status = ENDED.split(printed)[:2]
        print(said)
        assert status == "0", f"{text}\n\n{said}"
        return said

    def close(self) -> None:
        """End the process, and what it started."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate(timeout=20)

    def _until_end(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        printed = ""
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not ENDED.search(printed):
                assert ready.select(end - time.monotonic()), f"no end of the block:\n{printed}"
                piece = os.read(self._process.stdout.fileno(), 65536).decode()
                assert piece, f"the session has ended:\n{printed}"
                printed += piece
        return printed


class Notebook:
    """The page's two sessions."""

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self._shell = Session(["bash", "--norc"], env, folder)
        self._python: Session | None = None

    def sh(self, text: str) -> str:
        """A block in the shell; a line that fails ends it."""
        status = f'\nprintf "\\n{END} %s\\n" $?\n'
        return self._shell.run("{ set -e; " + text + "\nset +e; }" + status)

    def python(self, text: str) -> str:
        """A block in Python, or a file if its first line names one."""
        if named := re.match(r"# (\w+\.py)\n", text):
            (self.folder / named[1]).write_text(text)
            return ""
        if self._python is None:  # started from the shell, so that it has the shell's environment
            wanted = self._shell.run(f'env -0 | base64 -w0\nprintf "\\n{END} 0\\n"\n')
            self._python = Session(
                [sys.executable, "-c", KERNEL], _environment(wanted), self.folder
            )
        return self._python.run(json.dumps(text) + "\n")

    def close(self) -> None:
        """End both."""
        for session in (self._python, self._shell):
            if session is not None:
                session.close()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _environment(encoded: str) -> dict[str, str]:
    pairs = base64.b64decode(encoded.strip()).decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


@pytest.fixture
def notebook(server: Server, tmp_path: Path) -> Iterator[Notebook]:
    """A shell as the page's reader has it, with a tiny model in place of the page's."""
    tools = tmp_path / "bin"
    tools.mkdir()
    turnwise = tools / "turnwise"
    turnwise.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{SERVER_PYTHON}" -m turnwise.cli "$@"\n'
    )
    turnwise.chmod(0o755)
    model = save_model(tmp_path / "tiny")
    (model / "turnwise-recipe.json").write_text(json.dumps(RECIPE))
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {
        "PATH": path,
        "HOME": str(tmp_path),
        "MODEL": str(model),
        "AGENT_PORT": str(_free_port()),
        "TURNWISE_DATA_DIR": str(server.data_dir),
    }
    made = Notebook(env, tmp_path)
    yield made
    made.close()


def blocks() -> list[tuple[str, str]]:
    """(language, text) of the page's blocks."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} == {"sh", "python"}
    return found


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_block_of_the_page_runs_in_order(notebook: Notebook, env: dict[str, str]) -> None:
    said: dict[str, str] = {}
    for language, text in blocks():
        if text != DONE_BEFORE:
            print(text)
            said[text] = notebook.sh(text) if language == "sh" else notebook.python(text)

    def printed_by(part: str) -> str:
        [found] = [output for text, output in said.items() if part in text]
        return found

    sagemaker = client("sagemaker", env)
    assert "Completed arn:aws:sagemaker:" in printed_by("trainer.train(wait=True)")
    packages = sagemaker.list_model_packages(ModelPackageGroupName="qwen3-mtrl-mpg")
    assert len(packages["ModelPackageSummaryList"]) == 2 + 1 + 1  # trained, continued, iterated
    assert "qwen3-mtrl-mpg/4" in printed_by("iterated.train(wait=True)")
    assert "status COMPLETED" in printed_by("aws logs filter-log-events")
    assert "EvaluateFineTunedModel Succeeded" in printed_by("evaluator.evaluate()")
    assert "CreateJob" in printed_by("turnwise audit search")
    assert ".json.gz" in printed_by("aws s3 ls s3://walks/trail/")
    assert "Stop" in printed_by("--job-name walks-by-cli")
    _tidy(sagemaker, env)


def _tidy(sagemaker: Any, env: Mapping[str, str]) -> None:
    """What would go on."""
    client("cloudtrail", env).delete_trail(Name="walks")
    job = {"JobName": "walks-by-boto3", "JobCategory": "AgentRFT"}
    if sagemaker.describe_job(**job)["JobStatus"] == "InProgress":
        sagemaker.stop_job(**job)
