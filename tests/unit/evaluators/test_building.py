"""Building an uploaded archive, in the sandbox."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.unit.evaluators.kit import STUB, Playground, a_playground

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


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def play(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Playground]:
    async with a_playground(tmp_path_factory.mktemp("playground"), "hello") as made:
        yield made


def left(play: Playground) -> list[str]:
    """What there is of builds."""
    return sorted(path.name for path in play.builds.rglob("*"))


async def test_what_cannot_be_built_says_why_and_leaves_nothing(play: Playground) -> None:
    without = {name: text for name, text in STUB.items() if name != "requirements.txt"}
    two = STUB["test_stub.py"] + "\ndef test_another(): pass\n"
    cases: list[tuple[Mapping[str, str], str, str]] = [
        (without, "test_stub.py::test_rollouts", "requirements.txt: '' is not in the archive's"),
        (STUB, "test_stub.py::test_missing", "entryPoint: 'test_stub.py::test_missing' is not fou"),
        (STUB, "", "entryPoint: '' is missing"),
        ({**STUB, "test_stub.py": two}, "test_stub.py", "is 2 tests"),
        ({**STUB, "test_stub.py": "import nowhere"}, "test_stub.py::test_rollouts", "nowhere"),
    ]
    for files, entry_point, message in cases:
        _, built = await play.built(files, entry_point)
        assert not built.is_active
        assert message in built.message
    _, built = await play.built_of(b"broken", "test_stub.py::test_rollouts")
    assert "is not a tar.gz that can be read" in built.message
    assert left(play) == ["acc_default", "stub"]  # nothing half-built stays


async def test_a_build_that_takes_too_long_ends_and_leaves_nothing(
    play: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(play.room.builder, "_timeout_s", 1.5)
    _, built = await play.built({**STUB, "test_stub.py": "import time; time.sleep(600)"})
    assert built.message == "Evaluator build timed out after 0.025 minutes"
    assert left(play) == ["acc_default", "stub"]


async def test_a_package_that_cannot_be_had_is_named_with_pips_words(play: Playground) -> None:
    files = {**STUB, "requirements.txt": "pytest\n./no-such-1.0-py3-none-any.whl\n"}
    _, built = await play.built(files)
    assert not built.is_active
    assert built.message.startswith("requirements.txt: './no-such-1.0-py3-none-any.whl' cannot")
    assert "ERROR" in play.build_log.read_text()


async def test_a_package_that_is_missing_is_installed_for_the_evaluator_alone(
    play: Playground,
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
    evaluator, built = await play.built(files)
    assert built.is_active, built.message + play.build_log.read_text()
    assert "Successfully installed tinyjudge-1.0" in play.build_log.read_text()
    agent = await play.agent(evaluator, size=1)
    (request,) = await play.requests(1)
    assert await play.outcomes(agent, [request]) == {request.rollout_id: None}
    assert (await play.world.trajectory(request.rollout_id)).rollout.rewards == (4.0,)
