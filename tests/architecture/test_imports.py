"""What may be imported where; `lint-imports` (in `make check`) holds the rest of the contract."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "turnwise"
#: Where torch may be imported: folders and files of the package.
TORCH_ROOMS = ("modeling", "training", "sampling", "rl/losses.py", "rl/packing.py", "worker.py")


def imports(file: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_only_the_torch_rooms_say_import_torch():
    heavy = {"torch", "transformers", "peft", "safetensors"}
    elsewhere = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if not str(file.relative_to(PACKAGE)).startswith(TORCH_ROOMS) and imports(file) & heavy
    }
    assert elsewhere == set()


def test_only_the_settings_and_the_clients_of_a_server_read_the_environment():
    readers = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        if "os.environ" in file.read_text()
    }
    assert readers <= {
        "settings.py",
        "client/client.py",
        "client/running.py",  # hands it to the agent
        "rft/feedback.py",
        "launching/local.py",  # hands it to the child
        "launching/mlflow.py",  # the same
        "launching/mlflow_child.py",  # in which MLflow reads it
        "evaluators/building.py",  # hands pip's part of it to pip
        "evaluators/inside/host.py",  # in an evaluator's sandbox, whose environment is its own
    }


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("turnwise.app.server", {"torch", "transformers", "peft"}),
        ("turnwise.cli", {"torch", "fastapi", "sqlalchemy", "uvicorn"}),
        ("turnwise.client", {"torch", "fastapi", "sqlalchemy", "numpy"}),
        ("turnwise.rft", {"torch", "fastapi", "sqlalchemy", "numpy"}),
    ],
)
def test_a_door_starts_without_what_it_does_not_need(module: str, absent: set[str]):
    program = f"import sys, {module}; print(*sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
