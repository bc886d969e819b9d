"""What holds of every answer, however odd the request was."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from botocore import parsers
from botocore.model import OperationModel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.wire.fuzz.building import Answer, Building, Sent
from tests.wire.fuzz.values import valid

#: How many times as many requests as the suite sends: `TURNWISE_FUZZ=50 pytest tests/wire/fuzz`.
TIMES = float(os.environ.get("TURNWISE_FUZZ", "1"))

_OURS = re.compile(r'Traceback|File "|site-packages|/turnwise/[a-z_]+/[a-z_/]*\.py|0x[0-9a-f]{8,}')


def fuzzing(examples: int) -> Callable[[Any], Any]:
    """So many requests; the same ones each time, unless more are asked for."""
    return settings(
        max_examples=max(1, round(examples * TIMES)),
        derandomize=TIMES <= 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Checked:
    """Asks a building, and checks what every answer must be."""

    def __init__(self, building: Building) -> None:
        self.building = building
        self.counts: Counter[str] = Counter()
        self._state = building.state()
        self._valid: dict[str, st.SearchStrategy[Any]] = {}

    def valid(self, operation: OperationModel) -> st.SearchStrategy[Any]:
        """Parameters of an operation that are mostly right."""
        if operation.name not in self._valid:
            self._valid[operation.name] = valid(operation.input_shape, self.building.known)
        return self._valid[operation.name]

    def ask(
        self,
        sent: Sent,
        operation: OperationModel | None = None,
        wrong: Callable[[Answer], str] = lambda answer: "",
        *,
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        """Send; `wrong` says what a refusal lacks, `allowed` are further statuses above 499."""
        answer = self.building.ask(sent)
        self.counts[f"{operation.name if operation else sent.method} {answer.status}"] += 1
        self._check(sent, answer, allowed)
        if answer.status < 400:
            if operation is not None:
                _parse(operation, answer)
            if operation and operation.name == "StartLogging":
                self.building.quieten(sent.body)
            if sent.method == "DELETE" or (operation and operation.name.startswith("Delete")):
                self.building.refurnish(is_s3=operation is None)
            self._state = self.building.state()
            return answer
        assert not (problem := wrong(answer)), (problem, answer)
        self._unchanged(sent)
        return answer

    def observe(self) -> None:
        """What is there now is what a refusal must leave as it is."""
        self._state = self.building.state()

    def refused(self, sent: Sent, *, allowed: tuple[int, ...] = ()) -> Answer:
        """Send what must be refused."""
        answer = self.ask(sent, allowed=allowed)
        leads_to_the_pages = answer.headers.get("location") == "/dashboard"  # which ask for a key
        assert answer.status >= 400 or leads_to_the_pages, answer
        return answer

    def _check(self, sent: Sent, answer: Answer, allowed: tuple[int, ...]) -> None:
        assert not answer.errors, answer.errors[0]
        assert answer.status < 500 or answer.status in allowed, answer
        assert answer.status < 400 or not _OURS.search(answer.text), answer
        if answer.status >= 400:
            assert str(self.building.house.base.folder.root) not in answer.text, answer

    def _unchanged(self, sent: Sent) -> None:
        """A refusal changed nothing; what an earlier call had begun may have ended meanwhile."""
        for _ in range(3):
            before, self._state = self._state, self.building.state()
            if before == self._state:
                return
            self.building.ask(sent)
        changed = [name for name in before if before[name] != self._state[name]]
        raise AssertionError(f"the refused request changed {', '.join(changed)}")


def _parse(operation: OperationModel, answer: Answer) -> None:
    """Read an answer as botocore does."""
    protocol = operation.service_model.metadata["protocol"]
    head = {"status_code": answer.status, "headers": answer.headers, "body": answer.body}
    if not operation.has_streaming_output:
        parsers.create_parser(protocol).parse(head, operation.output_shape)
