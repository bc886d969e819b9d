"""The contract's conformance checks, 1 to 30, each by tests whose docstring gives its number.

`python -m tests.wire.fireworks.clients.test_contract` prints which.
"""

from __future__ import annotations

from pathlib import Path

from tests.wire.contract import checked, show

CHECKS = range(1, 31)
HERE = Path(__file__).parent


def test_every_check_of_the_contract_has_a_test_with_the_real_clients() -> None:
    assert sorted(checked(HERE)) == [*CHECKS]


if __name__ == "__main__":
    show(HERE)
