"""An uploaded archive built: unpacked, its requirements installed, its one test found.

What the evaluators' interpreter has already is not fetched. Only where something is missing, a
virtual environment is made beside the project, which sees that interpreter's packages, and pip
fetches the rest. pip and the collection run in the sandbox; pip alone with the network.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from turnwise import errors
from turnwise.domain.evaluator import Evaluator
from turnwise.evaluators.files import SharedFolder
from turnwise.evaluators.hosting import ENVIRONMENT, Build, pytest_arguments, tail
from turnwise.evaluators.sandbox import Sandboxes
from turnwise.evaluators.unpack import Bounds, unpack
from turnwise.ports import Built

#: The secrets of an account, by the name of their variable.
Secrets = Callable[[str], Awaitable[Mapping[str, str]]]

MANIFEST = "build.json"

#: Of what a look at a project prints, so much is read.
MAX_ANSWER = 8 << 20


class Builder:
    """Builds into `folder`/account/evaluator/hash. One evaluator's builds come one at a time."""

    def __init__(
        self,
        boxes: Callable[[], Awaitable[Sandboxes]],
        folder: Path,
        secrets: Secrets,
        *,
        bounds: Bounds,
        timeout_s: float,
    ) -> None:
        """`boxes` gives the sandboxes, or raises `Unavailable` with the remedy."""
        self._boxes = boxes
        self._folder = folder
        self._secrets = secrets
        self._bounds = bounds
        self._timeout_s = timeout_s

    async def build(self, evaluator: Evaluator, archive: Path, log: Path) -> Built:
        """What became of it, in words; all that its programs print goes to `log`."""
        folder = self._place(evaluator)
        making = folder.with_name(folder.name + ".making")
        await asyncio.to_thread(_clear, making)
        try:
            async with asyncio.timeout(self._timeout_s):
                boxes = await self._boxes()
                await self._make(evaluator, archive, making, boxes, log)
        except TimeoutError:
            return Built(
                message=f"Evaluator build timed out after {self._timeout_s / 60:g} minutes"
            )
        except errors.TurnwiseError as error:
            return Built(message=str(error))
        else:
            await asyncio.to_thread(_take_over, making, folder)
            return Built(is_active=True, message="Evaluator built successfully")
        finally:
            await asyncio.to_thread(_clear, making)

    async def forget(self, account_id: str, evaluator_id: str) -> None:
        """Remove what was built."""
        folder = self._folder / account_id / evaluator_id
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def built(self, evaluator: Evaluator) -> Build:
        """What jobs run. Raises `Unavailable` where it is not on this server's disk."""
        folder = self._place(evaluator)
        try:
            told = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError):
            raise errors.Unavailable(
                f"evaluator {evaluator.evaluator_id!r} is not built on this server; upload it again"
            ) from None
        return Build(
            folder=folder,
            entry_point=evaluator.entry_point,
            python=told["python"],
            mode=told["mode"],
            is_remote=told.get("is_remote", False),  # not in what was built before it was asked
        )

    async def _make(
        self, evaluator: Evaluator, archive: Path, folder: Path, boxes: Sandboxes, log: Path
    ) -> None:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        top = await asyncio.to_thread(unpack, archive, folder / "unpacked", self._bounds)
        await asyncio.to_thread(_arrange, top, folder)
        secrets = await self._secrets(evaluator.account_id)
        shop = _Shop(folder, boxes, log, {**secrets, **ENVIRONMENT})
        await self._install(shop)
        found = await shop.collect(evaluator.entry_point)
        told = {"python": boxes.interpreter.executable, **found}
        await asyncio.to_thread(_conclude, folder, told)

    async def _install(self, shop: _Shop) -> None:
        if not (shop.folder / "project/requirements.txt").is_file():
            raise errors.InvalidInput(
                "requirements.txt",
                "",
                "is not in the archive's top folder",
                remedy="add one beside the test; it may be empty",
            )
        if missing := await shop.missing_requirements():
            await shop.install(missing)

    def _place(self, evaluator: Evaluator) -> Path:
        name = evaluator.archive_sha256[:32] or "none"
        return self._folder / evaluator.account_id / evaluator.evaluator_id / name


class _Shop:
    """One build's folder, and the programs that run in it."""

    def __init__(self, folder: Path, boxes: Sandboxes, log: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self._boxes = boxes
        self._log = log
        self._env = env

    async def missing_requirements(self) -> list[str]:
        """Lines of requirements.txt that the interpreter's packages do not satisfy."""
        asked = await self._ask("requirements", "requirements.txt")
        missing: list[str] = asked["missing"]
        return missing

    async def install(self, missing: Sequence[str]) -> None:
        """Into a virtual environment of its own. Raises `Unavailable` with pip's last words."""
        executable = self._boxes.interpreter.executable
        venv = self._boxes.seen(self.folder, self.folder / "venv")
        self._note(f"missing: {', '.join(missing)}\n")
        made = await self._run([executable, "-m", "venv", "--without-pip", venv], self._log)
        if made != 0:
            raise errors.Unavailable(f"no virtual environment can be made: {tail(self._log)}")
        await asyncio.to_thread(_show_packages, self.folder / "venv", self._boxes)
        pip = [f"{venv}/bin/python", "-m", "pip", "install", "--no-input", "--no-cache-dir"]
        command = [*pip, "--disable-pip-version-check", "-r", "requirements.txt"]
        if await self._run(command, self._log, has_network=True) != 0:
            raise errors.InvalidInput(
                "requirements.txt",
                ", ".join(missing),
                f"cannot be installed: {_last_error(tail(self._log))}",
                remedy="correct it, or install the packages where evaluators run",
            )

    async def collect(self, entry_point: str) -> dict[str, Any]:
        """What `Build` keeps of its one test: "mode" and "is_remote".

        Raises `InvalidInput` unless there is exactly that one.
        """
        if not entry_point:
            raise errors.InvalidInput(
                "entryPoint", entry_point, "is missing", remedy='send "test_file.py::test_name"'
            )
        found = await self._ask("collect", *pytest_arguments(entry_point))
        self._note(found["text"])
        tests: list[str] = found["tests"]
        if tests != [entry_point]:
            said = _last_error(found["text"])
            what = f"is {len(tests)} tests" if len(tests) > 1 else f"is not found: {said}"
            raise errors.InvalidInput(
                "entryPoint",
                entry_point,
                what,
                remedy="name one test below the archive's top folder, as test_file.py::test_name",
            )
        return {name: found[name] for name in ("mode", "is_remote")}

    async def _ask(self, *question: str) -> dict[str, Any]:
        """Put a question to `inspect_project`; its answer."""
        output = self.folder.with_name(self.folder.name + ".answer")
        output.unlink(missing_ok=True)
        python = self._python()
        program = self._boxes.program("inspect_project.py")
        code = await self._run([python, program, *question], output)
        lines = await asyncio.to_thread(_end_of, output)
        output.unlink(missing_ok=True)
        try:
            answer = json.loads(lines[-1])
        except (ValueError, IndexError):
            said = "\n".join(lines[-20:]) or f"it ended with code {code}"
            self._note(said)
            raise errors.Unavailable(f"the evaluator cannot be looked at: {said[-500:]}") from None
        return dict(answer)

    async def _run(self, argv: Sequence[str], output: Path, *, has_network: bool = False) -> int:
        env = dict(self._env)
        if has_network:  # the operator's way to packages; secrets stay out of setup scripts
            env = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        boxed = await self._boxes.start(
            argv,
            folder=self.folder,
            cwd=self.folder / "project",
            env=env,
            output=output,
            has_network=has_network,
        )
        try:
            return await boxed.wait()
        finally:
            await boxed.end()

    def _python(self) -> str:
        if (self.folder / "venv").is_dir():
            return self._boxes.seen(self.folder, self.folder / "venv/bin/python")
        return self._boxes.interpreter.executable

    def _note(self, text: str) -> None:
        with self._log.open("a") as log:
            log.write(text)


def _arrange(top: Path, folder: Path) -> None:
    """`folder`/project is what was the archive's top folder."""
    top.rename(folder / "project")
    shutil.rmtree(folder / "unpacked", ignore_errors=True)


def _show_packages(venv: Path, boxes: Sandboxes) -> None:
    """Let a new environment see the interpreter's own packages, without their being in it."""
    shared = SharedFolder(venv)
    library = next(iter(shared.names("lib")), "")
    packages = [path for path in boxes.interpreter.paths if Path(path).name == "site-packages"]
    text = "".join(f"{path}\n" for path in packages)
    shared.write(f"lib/{library}/site-packages/evaluators.pth", text.encode())


def _conclude(folder: Path, told: Mapping[str, str]) -> None:
    """Write the manifest of a build whose programs have ended; they could write its folder too.

    A link in the place of one of our own names would lead the server to files of its own.
    """
    for name in ("project", "venv"):
        if (folder / name).is_symlink():
            raise errors.InvalidInput(name, name, "was replaced by a link during the build")
    try:
        SharedFolder(folder).write(MANIFEST, json.dumps(told).encode())
    except FileExistsError:
        raise errors.InvalidInput(MANIFEST, MANIFEST, "was written by the build itself") from None


def _take_over(making: Path, folder: Path) -> None:
    """Put a finished build in its place; those of earlier archives go."""
    for former in folder.parent.iterdir():
        if former != making:
            shutil.rmtree(former, ignore_errors=True)
    for name in ("home", "tmp"):
        shutil.rmtree(making / name, ignore_errors=True)
    making.rename(folder)


def _clear(making: Path) -> None:
    shutil.rmtree(making, ignore_errors=True)
    shutil.rmtree(making.with_name(making.name + ".root"), ignore_errors=True)
    making.with_name(making.name + ".answer").unlink(missing_ok=True)


def _end_of(output: Path) -> list[str]:
    """The last lines of what a program printed, which may be as much as its limits let it."""
    with output.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - MAX_ANSWER))
        return opened.read().decode(errors="replace").splitlines()


def _last_error(text: str) -> str:
    """The line of a program's output that says most: an exception's, an error's, or the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [line[1:].strip() for line in lines if line.startswith("E  ")]
    told = [line for line in lines if line.startswith("ERROR") or "Error:" in line]
    return (raised or told or lines or ["it printed nothing"])[-1][:300]
