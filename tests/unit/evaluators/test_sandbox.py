"""What a program in a sandbox can do, what it cannot, and that it ends."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.unit.evaluators.kit import interpreter, skip_without_sandbox
from turnwise import errors
from turnwise.evaluators.relay import open_relay
from turnwise.evaluators.sandbox import (
    GATEWAY_PORT,
    Boxed,
    Limits,
    Sandboxes,
    find_interpreter,
)


@pytest_asyncio.fixture
async def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's data folder with its secrets; skipped where there can be no sandbox."""
    await skip_without_sandbox()
    return a_data_folder(tmp_path_factory.mktemp("data"))


def a_data_folder(folder: Path) -> Path:
    for name in ("master.key", "admin.key"):
        (folder / name).write_text("secret")
        (folder / name).chmod(0o600)
    return folder


@dataclass
class Play:
    """A sandbox in which a test's programs run."""

    boxes: Sandboxes
    folder: Path

    async def start(self, code: str, *args: str, **options: Any) -> Boxed:
        """Run Python code."""
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        command = [
            self.boxes.interpreter.executable,
            "-I",
            "-S",
            "-c",
            textwrap.dedent(code),
            *args,
        ]
        given: dict[str, Any] = {"folder": work, "cwd": work, "env": {}, "output": self.output}
        return await self.boxes.start(command, **(given | options))

    async def told(self, code: str, *args: str, **options: Any) -> Any:
        """What the code printed as JSON."""
        boxed = await self.start(code, *args, **options)
        try:
            code_ = await asyncio.wait_for(boxed.wait(), 30)
        finally:
            await boxed.end()
        assert code_ == 0, self.output.read_text()
        return json.loads(self.output.read_text())

    @property
    def output(self) -> Path:
        return self.folder / "output.log"


async def play(data: Path, *, limits: Limits | None = None, is_isolated: bool = True) -> Play:
    boxes = Sandboxes(
        interpreter=await interpreter(),
        hidden=(data,),
        is_isolated=is_isolated,
        limits=limits or Limits(),
    )
    return Play(boxes, data)


def processes(marker: str) -> list[int]:
    """Running processes with that word on their command line, by this machine's ids."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and marker in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def until(expected: int, marker: str) -> None:
    async with asyncio.timeout(30):
        while len(processes(marker)) != expected:
            await asyncio.sleep(0.02)


_TRY = """
    import json, os, signal, socket, sys
    told = {}
    def attempt(name, do):
        try:
            told[name] = str(do())
        except OSError as error:
            told[name] = type(error).__name__
"""


async def test_a_program_reads_no_secret_and_reaches_no_server_and_no_process(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERS_SECRET", "secret")
    outside = os.open(data / "admin.key", os.O_RDONLY)
    os.set_inheritable(outside, True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        told = await (await play(data)).told(
            _TRY
            + """
    folder, pid, host, port = sys.argv[1:]
    attempt("master key", lambda: open(folder + "/master.key").read())
    attempt("admin key", lambda: open(folder + "/admin.key").read())
    attempt("data folder", lambda: os.listdir(folder))
    attempt("shadow", lambda: open("/etc/shadow").read())
    attempt("signal", lambda: os.kill(int(pid), 0))
    attempt("memory", lambda: open(f"/proc/{pid}/mem").read())
    attempt("outside", lambda: socket.create_connection((host, int(port)), 5))
    attempt("internet", lambda: socket.create_connection(("8.8.8.8", 53), 5))
    attempt("write", lambda: open("/usr/evil", "w"))
    attempt("kernel", lambda: open("/proc/sys/kernel/hostname", "w"))
    told["environment"] = sorted(os.environ)
    told["descriptors"] = sorted(os.listdir("/proc/self/fd"))
    status = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
    told["capabilities"] = status["CapEff"].strip()
    told["processes"] = [p for p in os.listdir("/proc") if p.isdecimal()]
    open("own", "w").write("fine")
    told["own"] = open("own").read()
    print(json.dumps(told))
            """,
            str(data),
            str(os.getpid()),
            *map(str, address),
        )
    os.close(outside)
    assert told.pop("own") == "fine"
    assert told.pop("environment") == ["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR"]
    assert told.pop("descriptors") == ["0", "1", "2", "3"]  # the last lists the others
    assert told.pop("capabilities") == "0000000000000000"
    assert told.pop("processes") == ["1", "2"]
    assert told == {
        "master key": "FileNotFoundError",
        "admin key": "FileNotFoundError",
        "data folder": "FileNotFoundError",
        "shadow": "FileNotFoundError",
        "signal": "ProcessLookupError",
        "memory": "FileNotFoundError",
        "outside": "ConnectionRefusedError",
        "internet": "OSError",
        "write": "OSError",
        "kernel": "PermissionError",
    }


async def test_a_data_folder_below_what_is_shown_is_empty_inside(data: Path) -> None:
    shown, inner = data / "shown", data / "shown" / "data"
    inner.mkdir(parents=True)
    for folder in (shown, inner):
        folder.chmod(0o755)
        (folder / "key").write_text("secret")
    box = await play(data)
    box.boxes = replace(box.boxes, hidden=(inner,))
    told = await box.told(
        _TRY
        + """
    attempt("hidden", lambda: open(sys.argv[1] + "/data/key").read())
    attempt("beside", lambda: open(sys.argv[1] + "/key").read())
    print(json.dumps(told))
        """,
        str(shown),
        read_only=[shown],
    )
    assert told == {"hidden": "PermissionError", "beside": "secret"}


async def test_the_gateway_is_reached_on_the_sandboxs_own_loopback(data: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"you said " + await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    box = await play(data)
    boxed = await box.start(
        """
        import socket, sys
        with socket.create_connection(("localhost", int(sys.argv[1]))) as gateway:
            gateway.sendall(b"hello\\n")
            print(gateway.makefile().read(), end="")
        """,
        str(GATEWAY_PORT),
    )
    assert boxed.listener is not None
    relay = await open_relay(boxed.listener, url)
    try:
        assert await asyncio.wait_for(boxed.wait(), 30) == 0
    finally:
        relay.close()
        server.close()
        await boxed.end()
    assert box.output.read_text() == "you said hello\n"


async def test_each_limit_is_kept(data: Path) -> None:
    limits = Limits(memory_bytes=300 << 20, file_bytes=1 << 16, processes=12, open_files=32)
    told = await (await play(data, limits=limits)).told(
        _TRY
        + """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    def eat():
        try:
            return len(bytearray(400 << 20))
        except MemoryError:
            return "MemoryError"
    def breed():
        children = []
        try:
            for _ in range(40):
                pid = os.fork()
                if pid == 0:
                    signal.pause()
                children.append(pid)
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
    def write():
        with open("big", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 15))
    attempt("memory", eat)
    attempt("file", write)
    attempt("open", lambda: [os.open("/dev/null", 0) for _ in range(64)])
    attempt("fork", breed)
    print(json.dumps(told))
        """
    )
    assert told == {
        "memory": "MemoryError",
        "file": "OSError",
        "open": "OSError",
        "fork": "BlockingIOError",
    }
    assert (data / "work/big").stat().st_size <= 1 << 16


async def test_a_program_that_computes_for_too_long_is_killed(data: Path) -> None:
    box = await play(data, limits=Limits(cpu_s=1))
    boxed = await box.start("while True: pass")
    try:
        assert await asyncio.wait_for(boxed.wait(), 60) == -signal.SIGKILL & 0xFF
    finally:
        await boxed.end()


#: Starts a grandchild in a session of its own, whose parent then ends; all bear the marker.
_BREEDER = """
    import os, signal, sys
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            os._exit(0)
    open("ready" + str(os.getpid()), "w")
    signal.pause()
"""


@pytest.mark.parametrize("is_isolated", [True, False])
async def test_its_end_is_that_of_its_grandchildren(data: Path, is_isolated: bool) -> None:
    marker = secrets.token_hex(8)
    box = await play(data, is_isolated=is_isolated)
    boxed = await box.start(_BREEDER, marker)
    await until(2, marker)
    await boxed.end()
    assert processes(marker) == []


@pytest.mark.parametrize("is_isolated", [True, False])
async def test_the_servers_end_is_that_of_its_sandboxes(data: Path, is_isolated: bool) -> None:
    marker = secrets.token_hex(8)
    code = """
        import asyncio, json, sys
        from pathlib import Path
        from turnwise.evaluators.sandbox import Interpreter, Sandboxes
        async def main():
            folder, marker, code, interpreter, is_isolated = sys.argv[1:]
            boxes = Sandboxes(
                interpreter=Interpreter(**json.loads(interpreter)),
                hidden=(Path(folder),),
                is_isolated=json.loads(is_isolated),
            )
            work = Path(folder) / "work"
            work.mkdir()
            command = [boxes.interpreter.executable, "-I", "-S", "-c", code, marker]
            kept = await boxes.start(
                command, folder=work, cwd=work, env={}, output=Path(folder) / "output.log"
            )
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    python = json.dumps(asdict(await interpreter()))
    arguments = [str(data), marker, textwrap.dedent(_BREEDER), python, json.dumps(is_isolated)]
    server = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *arguments])
    try:
        await until(3, marker)  # the server has it on its command line too
    finally:
        server.kill()
        server.wait()
    await until(0, marker)


async def test_a_program_that_cannot_be_started_says_why(data: Path) -> None:
    box = await play(data)
    work = data / "work"
    work.mkdir()
    boxed = await box.boxes.start(
        ["/no/such/program"], folder=work, cwd=work, env={}, output=box.output
    )
    assert await asyncio.wait_for(boxed.wait(), 30) == 71
    await boxed.end()
    assert "/no/such/program cannot be started: " in box.output.read_text()


async def test_a_sandbox_that_cannot_be_made_says_why(data: Path) -> None:
    box = await play(data)
    box.boxes = replace(box.boxes, hidden=(Path("/usr"),))  # nothing starts without its libraries
    boxed = await box.start("print('never')")
    assert await asyncio.wait_for(boxed.wait(), 30) == 71
    await boxed.end()
    assert "cannot be " in box.output.read_text()


async def test_an_interpreter_that_is_none_is_refused_with_the_remedy() -> None:
    with pytest.raises(errors.Unavailable, match="TURNWISE_EVALUATOR_PYTHON"):
        await find_interpreter("/no/such/python")
    with pytest.raises(errors.Unavailable, match="is no Python that starts"):
        await find_interpreter("/bin/false")
