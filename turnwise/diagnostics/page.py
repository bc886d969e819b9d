"""Prints docs/findings.md: `python -m turnwise.diagnostics.page > docs/findings.md`."""

from __future__ import annotations

from turnwise.diagnostics.checks import CHECKS

_HEAD = """\
# Findings

Printed from `turnwise/diagnostics/checks.py` by `python -m turnwise.diagnostics.page`.

What a job has recorded is checked while it runs and after. A finding says what was seen, at which
steps, and what to do. They are on a job's page, in `turnwise jobs findings NAME` (`--json`), and at
`GET /api/v1/jobs/{name}/findings`. A job that learns has none; one that has found nothing yet may
only be too young: most checks wait for ten steps.

| code | severity | found when | what to do |
|---|---|---|---|
"""


def markdown() -> str:
    """All checks as docs/findings.md."""
    lines = [
        f"| `{check.code}` | {check.severity.value} | {_sentence(check.when)} "
        f"| {_sentence(check.remedy)} |"
        for check in CHECKS
    ]
    return _HEAD + "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    print(markdown(), end="")
