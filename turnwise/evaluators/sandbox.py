"""Programs of an evaluator in a sandbox: what they see, what they may use, and their end.

`inside/launch.py` makes the sandbox; this module says what is in it, and holds the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnwise import errors

INSIDE = Path(__file__).parent / "inside"

#: Where the sandbox's own folder and this package's programs are seen from inside.
WORK, PROGRAMS = "/work", "/launch"

#: What every program needs to start and to speak TLS. The rest of /etc is not for it.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ssl"),
    *("/etc/ca-certificates", "/etc/group", "/etc/hosts", "/etc/ld.so.cache", "/etc/localtime"),
    *("/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd", "/etc/pip.conf", "/etc/pki"),
    *("/etc/protocols", "/etc/resolv.conf", "/etc/services"),
)

#: The port of the gateway on a sandbox's own loopback. Nothing else listens there.
GATEWAY_PORT = 8420

#: How long a process that was asked to end may take until it is killed.
END_S = 5.0

HOW_TO_ALLOW = (
    "allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
    "kernel.apparmor_restrict_unprivileged_userns), or set TURNWISE_EVALUATOR_ISOLATION="
    "best_effort to run evaluators of people whom you trust without isolation"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What each process of a sandbox may use; 0 is no limit."""

    memory_bytes: int = 4 << 30  # of address space
    cpu_s: int = 3600
    file_bytes: int = 1 << 30
    processes: int = 256  # of the sandbox, threads included; not where root may map no users
    open_files: int = 1024

    @property
    def by_name(self) -> dict[str, int]:
        """As setrlimit(2) names them."""
        given = {
            "AS": self.memory_bytes,
            "CPU": self.cpu_s,
            "FSIZE": self.file_bytes,
            "NPROC": self.processes,
            "NOFILE": self.open_files,
        }
        return {"CORE": 0} | {name: value for name, value in given.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The Python that runs evaluators. `paths` are the folders it imports from."""

    executable: str
    paths: tuple[str, ...]
    has_pytest: bool
    has_eval_protocol: bool


async def find_interpreter(executable: str) -> Interpreter:
    """What the interpreter of that path is. Raises `Unavailable` with the remedy."""
    command = (executable, "-I", str(INSIDE / "inspect_project.py"), "about")
    try:
        asked = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await asked.communicate()
        told = json.loads(out) if asked.returncode == 0 else None
    except (OSError, ValueError) as error:
        raise _no_interpreter(executable, str(error)) from error
    if told is None:
        raise _no_interpreter(executable, said.decode(errors="replace")[-200:])
    return Interpreter(
        executable=told["executable"],
        paths=tuple(told["paths"]),
        has_pytest=told["has"]["pytest"],
        has_eval_protocol=told["has"]["eval_protocol"],
    )


def _no_interpreter(executable: str, why: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"evaluator_python: {executable!r} is no Python that starts ({why}); set "
        "TURNWISE_EVALUATOR_PYTHON to one that has eval-protocol and pytest installed"
    )


@dataclass(slots=True, kw_only=True)
class Boxed:
    """A program in its sandbox. `control` and `listener` are there if they were asked for.

    `listener` listens on the sandbox's own loopback; whoever accepts on it is its gateway.
    """

    process: asyncio.subprocess.Process
    control: socket.socket | None = None
    listener: socket.socket | None = None
    _ended: bool = field(default=False, init=False)

    async def wait(self) -> int:
        """Its exit code."""
        return await self.process.wait()

    async def end(self) -> None:
        """Kill it with all that it has started, and wait until it is gone."""
        if self._ended:
            return
        self._ended = True
        for held in (self.control, self.listener):
            if held is not None:
                held.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), END_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                await self.process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandboxes:
    """Starts programs in sandboxes. `hidden` are folders that no program may see.

    Where `is_isolated` is false, a program has a clean environment, limits and a folder of its
    own, and nothing keeps it from reading what the server's user can read.
    """

    interpreter: Interpreter
    hidden: tuple[Path, ...]
    is_isolated: bool = True
    limits: Limits = field(default_factory=Limits)

    def seen(self, folder: Path, path: Path | None = None) -> str:
        """How a path in a sandbox's own folder is called from inside."""
        path = folder if path is None else path
        if not self.is_isolated:
            return str(path)
        return str(Path(WORK) / path.relative_to(folder))

    def program(self, name: str) -> str:
        """How a program of this package is called from inside."""
        return f"{PROGRAMS}/{name}" if self.is_isolated else str(INSIDE / name)

    async def start(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        cwd: Path,
        env: Mapping[str, str],
        output: Path,
        has_network: bool = False,
        has_control: bool = False,
        read_only: Sequence[Path] = (),
    ) -> Boxed:
        """Run `argv` in `folder`, which is all that it may write; its output goes to a file.

        "{control}" in `argv` is the number of its control socket. `read_only` are folders that it
        sees beside those of the interpreter. Raises `Unavailable` when there can be no sandbox.
        """
        for name in ("home", "tmp"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        root = folder.with_name(folder.name + ".root")
        root.mkdir(mode=0o700, exist_ok=True)
        if self.is_isolated and os.geteuid() == 0:
            await asyncio.to_thread(_give_away, folder)
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            control = _pair(ours, theirs) if has_control else None
            needs_way_out = self.is_isolated and not has_network
            way_out = _pair(ours, theirs) if needs_way_out else None
            fds = [pair[1].fileno() for pair in (control, way_out) if pair is not None]
            spec = {
                "parent": os.getpid(),
                "isolated": self.is_isolated,
                "network": "host" if has_network or not self.is_isolated else "none",
                "root": str(root),
                "work": str(folder),
                "read_only": [*_SYSTEM, *self._paths(), *map(str, read_only)],
                "shown_as": [[str(INSIDE), PROGRAMS]],
                "hidden": [str(path) for path in self._exposed(read_only)],
                "port": GATEWAY_PORT,
                "argv": [_with_control(word, control) for word in argv],
                "env": self._environment(folder, env),
                "cwd": self.seen(folder, cwd),
                "limits": self.limits.by_name,
                "control": control[1].fileno() if control else None,
                "listener": way_out[1].fileno() if way_out else None,
            }
            process = await self._launch(spec, fds, output)
            theirs.close()
            boxed = Boxed(process=process, control=control[0] if control else None)
            ours.pop_all()
        if way_out is not None:
            boxed.listener = await _received(way_out[0], boxed, output)
        return boxed

    async def _launch(
        self, spec: dict[str, Any], fds: Sequence[int], output: Path
    ) -> asyncio.subprocess.Process:
        with output.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                self.interpreter.executable,
                "-I",
                str(INSIDE / "launch.py"),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env={"LANG": "C.UTF-8"},
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec).encode())
        process.stdin.close()
        return process

    def _environment(self, folder: Path, given: Mapping[str, str]) -> dict[str, str]:
        """All that a program finds in its environment."""
        return dict(given) | {
            "PATH": f"{Path(self.interpreter.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": self.seen(folder, folder / "home"),
            "TMPDIR": self.seen(folder, folder / "tmp"),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _paths(self) -> list[str]:
        """The interpreter's folders, with what links on the way to it lead to."""
        executable = Path(self.interpreter.executable)
        found = [*self.interpreter.paths]
        while executable.is_symlink():
            executable = Path(os.path.normpath(executable.parent / executable.readlink()))
            found.append(str(executable.parent.parent))
        shortest: list[str] = []
        for path in sorted(set(found), key=len):
            if path != "/" and not any(Path(path).is_relative_to(kept) for kept in shortest):
                shortest.append(path)
        return shortest

    def _exposed(self, read_only: Sequence[Path]) -> list[Path]:
        """Hidden folders that lie below something that is shown."""
        shown = [Path(p).resolve() for p in (*_SYSTEM, *self._paths(), *map(str, read_only))]
        return [
            hidden
            for hidden in (path.resolve() for path in self.hidden)
            if any(hidden.is_relative_to(path) for path in shown)
        ]


async def try_isolation(interpreter: Interpreter, folder: Path) -> str:
    """Make a sandbox and leave it; what stands against it, "" if it works."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    boxes = Sandboxes(interpreter=interpreter, hidden=())
    work, output = folder / "probe", folder / "probe.log"
    work.mkdir(mode=0o700, exist_ok=True)
    output.unlink(missing_ok=True)
    try:
        argv = [interpreter.executable, "-I", "-c", "import os; os.stat('/proc/self/status')"]
        boxed = await boxes.start(argv, folder=work, cwd=work, env={}, output=output)
    except errors.Unavailable as error:
        return str(error)
    code = await boxed.wait()
    await boxed.end()
    return "" if code == 0 else _tail(output) or f"a first program ended with code {code}"


def _with_control(word: str, control: tuple[socket.socket, socket.socket] | None) -> str:
    return word if control is None else word.replace("{control}", str(control[1].fileno()))


def _pair(
    ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair()
    ours.enter_context(pair[0])
    theirs.enter_context(pair[1])
    return pair


async def _received(way_out: socket.socket, boxed: Boxed, output: Path) -> socket.socket:
    """The listening socket that is made inside; none comes where there can be no sandbox."""
    with way_out:
        way_out.setblocking(False)
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(way_out, readable.set)
        try:
            await readable.wait()
        except asyncio.CancelledError:
            await boxed.end()
            raise
        finally:
            loop.remove_reader(way_out)
        _, fds, _, _ = socket.recv_fds(way_out, 1, 1)
    if not fds:
        await boxed.end()
        raise errors.Unavailable(_tail(output) or "the sandbox cannot be made")
    listener = socket.socket(fileno=fds[0])
    listener.setblocking(False)
    return listener


def _give_away(folder: Path) -> None:
    """Root's sandboxes run as nobody, who then must own their folder."""
    for place, folders, files in os.walk(folder):
        os.lchown(place, 65534, 65534)
        for name in (*folders, *files):
            os.lchown(os.path.join(place, name), 65534, 65534)


def _tail(file: Path) -> str:
    with contextlib.suppress(OSError):
        lines = file.read_text(errors="replace").strip().splitlines()
        return lines[-1][-500:] if lines else ""
    return ""
