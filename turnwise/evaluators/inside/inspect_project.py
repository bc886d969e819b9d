"""Looks at an unpacked evaluator with the interpreter that will run it; one JSON object on stdout.

python inspect_project.py requirements FILE      {"missing": ["numpy>=3"], "odd": ["-r x"]}
python inspect_project.py collect ARGUMENT...    {"tests": [...], "mode": "...", "is_remote": false,
                                                  "text": "..."}
python inspect_project.py about                  {"executable", "prefixes", "has": {...}}
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

#: Eval-protocol's processors whose rollouts are made on a server of the user's.
REMOTE = ("RemoteRolloutProcessor", "GithubActionRolloutProcessor")


def about() -> dict[str, Any]:
    """Where this interpreter lives and what it can import."""
    has = {name: importlib.util.find_spec(name) is not None for name in ("pytest", "eval_protocol")}
    paths = [sys.prefix, sys.base_prefix, *(path for path in sys.path if path)]
    kept = [path for path in dict.fromkeys(paths) if Path(path).is_dir()]
    return {
        "executable": sys.executable,
        "real_executable": str(Path(sys.executable).resolve()),
        "paths": kept,
        "has": has,
    }


def missing_requirements(file: str) -> dict[str, Any]:
    """Lines that what is installed does not satisfy; lines that pip alone can judge are missing."""
    missing = []
    for raw in Path(file).read_text().splitlines():
        line = raw.partition(" #")[0].strip()
        if line and not line.startswith("#") and not _is_satisfied(line):
            missing.append(line)
    return {"missing": missing}


def _is_satisfied(line: str) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(line)
    except InvalidRequirement:
        return False
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    if wanted.url is not None:
        return False
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return wanted.specifier.contains(version, prereleases=True) and all(
        _is_satisfied(needed) for needed in _of_extras(wanted.name, wanted.extras)
    )


def _of_extras(name: str, extras: set[str]) -> list[str]:
    """What the extras of an installed package need beyond it, as plain requirements."""
    from packaging.requirements import Requirement

    found = []
    for line in importlib.metadata.requires(name) or ():
        needed = Requirement(line)
        marker, needed.marker = needed.marker, None
        if marker is None or marker.evaluate({"extra": ""}):
            continue
        if any(marker.evaluate({"extra": extra}) for extra in extras):
            found.append(str(needed))
    return found


def collect(*arguments: str) -> dict[str, Any]:
    """The tests that pytest finds by these, and what the first one's `@evaluation_test` says."""
    import pytest

    class Found:
        """Keeps what is collected."""

        def __init__(self) -> None:
            self.tests: list[str] = []
            self.mode = ""
            self.is_remote = False

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            for item in session.items:
                name = item.nodeid.partition("[")[0]
                if name not in self.tests:
                    self.tests.append(name)
                parameters = getattr(getattr(item, "obj", None), "__ep_params__", None)
                self.mode = self.mode or str(getattr(parameters, "mode", ""))
                kinds = type(getattr(parameters, "rollout_processor", None)).__mro__
                self.is_remote |= any(kind.__name__ in REMOTE for kind in kinds)

    found, text = Found(), io.StringIO()
    sys.path.insert(0, str(Path.cwd()))
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = int(pytest.main(["--collect-only", *arguments], plugins=[found]))
    return {
        "tests": found.tests,
        "mode": found.mode,
        "is_remote": found.is_remote,
        "code": code,
        "text": text.getvalue(),
    }


def main() -> None:
    """One question, one answer."""
    what, *arguments = sys.argv[1:]
    answers = {"about": about, "requirements": missing_requirements, "collect": collect}
    print(json.dumps(answers[what](*arguments)))  # type: ignore[operator]


if __name__ == "__main__":
    main()
