"""A warm process of one evaluator in its sandbox, which runs its test when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from turnwise import errors
from turnwise.evaluators.relay import open_relay
from turnwise.evaluators.sandbox import GATEWAY_PORT, Boxed, Sandboxes

#: What is imported before the first run: all that an `@evaluation_test` imports by its end.
IMPORTS = (
    "pytest",
    "pytest_asyncio",
    "eval_protocol.pytest",
    "eval_protocol.pytest.default_single_turn_rollout_process",
    "eval_protocol.pytest.default_mcp_gym_rollout_processor",
    "eval_protocol.pytest.evaluation_test_postprocess",
)

#: Eval-protocol as a part of a service: rows that stream, no browser, no log database, nothing
#: uploaded, nothing fetched. (A litellm that may fetch its price list starts a thread for it.)
ENVIRONMENT = {
    "EP_USE_PRIORITY_SCHEDULER": "1",
    "EP_MICRO_BATCH_OUTPUT_SIZE": "1",
    "EP_NO_UPLOAD": "1",
    "EP_RAISE_EVAL_EXCEPTIONS": "false",
    "EP_DISABLE_AUTO_BROWSER": "1",
    "DISABLE_EP_SQLITE_LOG": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}

#: Longest that importing may take.
START_S = 120.0


def pytest_arguments(entry_point: str) -> list[str]:
    """What makes pytest find one test. Its decorator makes it a test, whatever it is called.

    >>> pytest_arguments("math.py::evaluate")[-3:]
    ['-o', 'python_functions=evaluate', 'math.py::evaluate']
    """
    name = entry_point.rpartition("::")[2].partition("[")[0]
    named = ["-o", f"python_functions={name}"] if name.isidentifier() else []
    return ["-q", "-p", "no:cacheprovider", "--rootdir", ".", *named, entry_point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A built evaluator on disk: `folder`/project, and `folder`/venv where it needs packages.

    `mode` is that of its `@evaluation_test`: "pointwise", "groupwise" or "all"; "" where it is not
    eval-protocol's. `is_remote`: its rollouts are made on a server of the user's, which it calls.
    `python` ran its build.
    """

    folder: Path
    entry_point: str
    python: str
    mode: str = ""
    is_remote: bool = False

    @property
    def project(self) -> Path:
        """The unpacked archive."""
        return self.folder / "project"

    @property
    def venv(self) -> Path | None:
        """What its requirements were installed into, if they were."""
        venv = self.folder / "venv"
        return venv if venv.exists() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A warm process. `import_s`: what its imports took; `forks`: whether a run is its fork.

    `base_url` is this server as its programs reach it; `shared_url` as both they and a server that
    they call reach it, where they can call one.
    """

    folder: Path
    boxes: Sandboxes
    boxed: Boxed
    base_url: str
    shared_url: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    relay: asyncio.Server | None
    waiting: dict[str, asyncio.Future[int]]
    listening: asyncio.Task[None]
    import_s: float
    forks: bool

    @property
    def is_alive(self) -> bool:
        """Whether it can run something."""
        return not self.listening.done()

    async def run(
        self, run_id: str, args: Sequence[str], env: Mapping[str, str], output: Path
    ) -> int:
        """pytest's exit code; that of a signal is negative. Cancelling it kills the run.

        Raises `ProcessDied` if the host ends meanwhile.
        """
        if not self.is_alive:
            raise errors.ProcessDied("the evaluator's process has ended")
        ended = asyncio.get_running_loop().create_future()
        self.waiting[run_id] = ended
        self._tell(
            run=run_id,
            args=list(args),
            env=dict(env),
            cwd=self.boxes.seen(self.folder, self.folder / "project"),
            out=self.boxes.seen(self.folder, output),
        )
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            self._tell(kill=run_id)
            with contextlib.suppress(errors.ProcessDied):
                await ended
            raise
        finally:
            self.waiting.pop(run_id, None)

    async def close(self) -> None:
        """Kill it and what it runs; its folder goes too."""
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)
        self.writer.close()
        if self.relay is not None:
            self.relay.close()
        await self.boxed.end()
        await asyncio.to_thread(_remove, self.folder)

    def _tell(self, **order: Any) -> None:
        if self.is_alive:
            self.writer.write(json.dumps(order).encode() + b"\n")


async def start_host(
    build: Build,
    boxes: Sandboxes,
    folder: Path,
    *,
    url: str,
    public_url: str,
    secrets: Mapping[str, str],
    has_network: bool,
) -> Host:
    """Start one in `folder`, which is new. `url` is where the server listens, `public_url` where
    others reach it.

    Raises `Unavailable` with the remedy, or with the last that it printed.
    """
    folder.mkdir(mode=0o700, parents=True)
    (folder / "runs").mkdir(mode=0o700)
    try:
        # The build's own programs could leave links to the server's files: they stay links.
        await asyncio.to_thread(shutil.copytree, build.project, folder / "project", symlinks=True)
    except OSError as error:
        await asyncio.to_thread(_remove, folder)
        raise errors.Unavailable(f"the evaluator's project cannot be copied: {error}") from error
    python = build.python if build.venv is None else str(build.venv / "bin" / "python")
    output = folder.with_name(folder.name + ".log")
    boxed = await boxes.start(
        [python, boxes.program("host.py"), "{control}", *IMPORTS],
        folder=folder,
        cwd=folder / "project",
        env={**secrets, **ENVIRONMENT},
        output=output,
        has_network=has_network,
        has_control=True,
        read_only=[] if build.venv is None else [build.venv],
    )
    try:
        assert boxed.control is not None
        reader, writer = await asyncio.open_unix_connection(sock=boxed.control)
        relay = None if boxed.listener is None else await open_relay(boxed.listener, url)
        ready = await _ready(reader, output)
    except BaseException:
        await boxed.end()
        await asyncio.to_thread(_remove, folder)
        raise
    waiting: dict[str, asyncio.Future[int]] = {}
    base_url = _seen_url(url, is_relayed=relay is not None)
    return Host(
        folder=folder,
        boxes=boxes,
        boxed=boxed,
        base_url=base_url,
        shared_url=base_url if relay is not None else public_url,
        reader=reader,
        writer=writer,
        relay=relay,
        waiting=waiting,
        listening=asyncio.create_task(_listen(reader, waiting), name="evaluator's host"),
        import_s=ready["ready"],
        forks=ready["forks"],
    )


async def _ready(reader: asyncio.StreamReader, output: Path) -> dict[str, Any]:
    try:
        line = await asyncio.wait_for(reader.readline(), START_S)
    except TimeoutError:
        raise errors.TooSlow(f"the evaluator's imports took longer than {START_S:g} s") from None
    if not line:
        raise errors.Unavailable(f"the evaluator's process ended at its start: {tail(output)}")
    ready: dict[str, Any] = json.loads(line)
    if "pytest" in ready["missing"]:
        raise errors.Unavailable(
            "the evaluators' interpreter has no pytest; install it there, or set "
            "TURNWISE_EVALUATOR_PYTHON to one that has it"
        )
    return ready


async def _listen(reader: asyncio.StreamReader, waiting: dict[str, asyncio.Future[int]]) -> None:
    """Tell who waits how their runs ended; at the end, that the host has."""
    try:
        while line := await reader.readline():
            ended = json.loads(line)
            future = waiting.get(ended["ended"])
            if future is not None and not future.done():
                future.set_result(ended["code"])
    finally:
        for future in waiting.values():
            if not future.done():
                future.set_exception(errors.ProcessDied("the evaluator's process has ended"))


def tail(file: Path, size: int = 1500) -> str:
    """The last that a program printed, on as many lines as it took."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, 2) - size))
            return opened.read().decode(errors="replace").strip() or "it printed nothing"
    except OSError:
        return "it printed nothing"


def _seen_url(url: str, *, is_relayed: bool) -> str:
    """The server's address from inside. Eval-protocol wants a local one to be "localhost"."""
    if is_relayed:
        return f"http://localhost:{GATEWAY_PORT}"
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "0.0.0.0", "::1"):
        return url
    return urlunsplit(parts._replace(netloc=f"localhost:{parts.port or 80}"))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.with_name(folder.name + ".root"), ignore_errors=True)
    folder.with_name(folder.name + ".log").unlink(missing_ok=True)
