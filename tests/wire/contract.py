"""Which tests show which of a contract's numbered checks: their docstrings say so.

"Contract check 3." or "Contract checks 3, 4." in the docstring of a test function.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

_NUMBERS = re.compile(r"Contract checks? ((?:\d+(?:, )?)+)")


def checked(folder: Path) -> dict[int, list[str]]:
    """The tests of each check in a folder's files, as pytest names them."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for file in sorted(folder.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for numbers in _NUMBERS.findall(ast.get_docstring(node) or ""):
                    for number in re.findall(r"\d+", numbers):
                        found[int(number)].append(f"{file.name}::{node.name}")
    return dict(found)


def show(folder: Path) -> None:
    """Print them, by number."""
    for check, tests in sorted(checked(folder).items()):
        for test in tests:
            print(f"{check:2}  {test}")
