"""Checks of a job over what it has recorded: each finding has its evidence and the remedy.

findings.py   the nouns: Recorded in, Finding out
measures.py   windows of a curve: pure numbers
checks.py     the checks, with the limits they go by
inspector.py  reads what a job has recorded and runs them
page.py       docs/findings.md
"""

from turnwise.diagnostics.checks import CHECKS, findings
from turnwise.diagnostics.findings import Check, Evidence, Finding, Recorded, Severity
from turnwise.diagnostics.inspector import Inspector

__all__ = [
    "CHECKS",
    "Check",
    "Evidence",
    "Finding",
    "Inspector",
    "Recorded",
    "Severity",
    "findings",
]
