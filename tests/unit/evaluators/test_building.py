"""Building an uploaded archive, in the sandbox."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.evaluators.kit import STUB, a_playground

_METADATA = "Metadata-Version: 2.1\nName: tinyjudge\nVersion: 1.0\n"


def a_wheel() -> bytes:
    """A package of one module."""
    files = {
        "tinyjudge.py": "ANSWER = 4\n",
        "tinyjudge-1.0.dist-info/METADATA": _METADATA,
        "tinyjudge-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{name},sha256={digest.decode()},{len(text)}\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as wheel:
        for name, text in {**files, "tinyjudge-1.0.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return out.getvalue()


async def test_what_cannot_be_built_says_why(tmp_path: Path) -> None:
    without = {name: text for name, text in STUB.items() if name != "requirements.txt"}
    two = STUB["test_stub.py"] + "\ndef test_another(): pass\n"
    cases: list[tuple[Mapping[str, str], str, str]] = [
        (without, "test_stub.py::test_rollouts", "requirements.txt: '' is not in the archive's"),
        (STUB, "test_stub.py::test_missing", "entryPoint: 'test_stub.py::test_missing' is not fou"),
        (STUB, "", "entryPoint: '' is missing"),
        ({**STUB, "test_stub.py": two}, "test_stub.py", "is 2 tests"),
        ({**STUB, "test_stub.py": "import nowhere"}, "test_stub.py::test_rollouts", "nowhere"),
    ]
    async with a_playground(tmp_path) as play:
        for files, entry_point, message in cases:
            _, built = await play.built(files, entry_point)
            assert not built.is_active
            assert message in built.message
        _, built = await play.built_of(b"broken", "test_stub.py::test_rollouts")
        assert "is not a tar.gz that can be read" in built.message
        left = [path.name for path in play.builds.rglob("*")]
        assert sorted(left) == ["acc_default", "stub"]  # nothing half-built stays


async def test_a_package_that_is_missing_is_installed_for_the_evaluator_alone(
    tmp_path: Path,
) -> None:
    judge = "import tinyjudge, os\n" + STUB["test_stub.py"].replace(
        "float(len(said))", "float(tinyjudge.ANSWER)"
    )
    files: dict[str, str | bytes] = {
        **STUB,
        "test_stub.py": judge,
        "requirements.txt": "# judges\npytest\n./tinyjudge-1.0-py3-none-any.whl\n",
        "tinyjudge-1.0-py3-none-any.whl": a_wheel(),
    }
    async with a_playground(tmp_path, "hello") as play:
        evaluator, built = await play.built(files)
        assert built.is_active, built.message + play.build_log.read_text()
        assert "Successfully installed tinyjudge-1.0" in play.build_log.read_text()
        agent = await play.agent(evaluator, size=1)
        (request,) = await play.requests(1)
        assert await play.outcomes(agent, [request]) == {request.rollout_id: None}
        assert (await play.world.trajectory("rollout_a")).rollout.rewards == (4.0,)


async def test_a_package_that_cannot_be_had_is_named_with_pips_words(tmp_path: Path) -> None:
    files = {**STUB, "requirements.txt": "pytest\n./no-such-1.0-py3-none-any.whl\n"}
    async with a_playground(tmp_path) as play:
        _, built = await play.built(files)
        assert not built.is_active
        assert built.message.startswith("requirements.txt: './no-such-1.0-py3-none-any.whl' cannot")
        assert "ERROR" in play.build_log.read_text()


async def test_a_build_that_takes_too_long_ends_and_leaves_nothing(tmp_path: Path) -> None:
    files = {**STUB, "test_stub.py": "import time; time.sleep(600)"}
    async with a_playground(tmp_path, build_timeout_s=6.0) as play:
        _, built = await play.built(files)
        assert built.message == "Evaluator build timed out after 0.1 minutes"
        assert sorted(path.name for path in play.builds.rglob("*")) == ["acc_default", "stub"]


#: What a hostile test module leaves behind while it is collected, by its name in the archive.
_LEAVES = {
    "build.json: 'build.json' was written by the build itself": (
        "os.symlink({victim!r}, '../build.json')"
    ),
    "project: 'project' was replaced by a link": (
        "os.rename('../project', '../other'), os.symlink({folder!r}, '../project')"
    ),
}


@pytest.mark.parametrize("message", list(_LEAVES))
async def test_a_build_that_leaves_a_link_in_a_name_of_ours_fails(
    tmp_path: Path, message: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    leave = _LEAVES[message].format(victim=str(victim), folder=str(tmp_path))
    start = f"import atexit, os\natexit.register(lambda: ({leave}))\n"
    files = {**STUB, "test_stub.py": start + STUB["test_stub.py"]}
    async with a_playground(tmp_path) as play:
        _, built = await play.built(files)
        assert not built.is_active
        assert built.message.startswith(message)
        assert victim.read_text() == "as it was"


async def test_a_link_that_a_build_leaves_shows_no_file_of_the_server(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret of the server")
    leave = f"import os\nif not os.path.lexists('loot'): os.symlink({str(victim)!r}, 'loot')\n"
    files = {**STUB, "test_stub.py": leave + STUB["test_stub.py"]}
    before = "import pathlib; open('loot').read()"
    async with a_playground(tmp_path, "hello") as play:
        evaluator, built = await play.built(files)
        assert built.is_active, built.message
        agent = await play.agent(evaluator, size=1)
        requests = await play.requests(1, before=before)
        await play.outcomes(agent, requests)
        assert "FileNotFoundError" in await play.log.until("FileNotFoundError")
        assert agent.host is not None
        assert (agent.host.folder / "project/loot").is_symlink()
