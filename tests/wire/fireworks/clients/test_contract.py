"""The contract's conformance checks, 1 to 30, each by tests whose docstring gives its number.

`python -m tests.wire.fireworks.clients.test_contract` prints which.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

CHECKS = range(1, 31)
_NUMBERS = re.compile(r"Contract checks? ((?:\d+(?:, )?)+)")


def checked() -> dict[int, list[str]]:
    """The tests of each check, as pytest names them."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for numbers in _NUMBERS.findall(ast.get_docstring(node) or ""):
                    for number in re.findall(r"\d+", numbers):
                        found[int(number)].append(f"{file.name}::{node.name}")
    return dict(found)


def test_every_check_of_the_contract_has_a_test_with_the_real_clients() -> None:
    assert sorted(checked()) == [*CHECKS]


if __name__ == "__main__":
    for check, tests in sorted(checked().items()):
        for test in tests:
            print(f"{check:2}  {test}")
