"""The demo's progress display: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status

Json = dict[str, Any]


class Progress:
    """Shows phase, step, reward, held-out success, tokens per second and time left."""

    def __init__(self) -> None:
        self._console = Console()
        self._status = Status("", console=self._console)
        self._phase = ""
        self._steps = 0
        self._step = -1
        self._first_step: tuple[int, float] | None = None
        self._rollouts = 0
        self._values: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def phase(self, name: str) -> None:
        """A new phase begins."""
        self._phase = name
        self._say(f"{name} ...")

    def note(self, line: str) -> None:
        """What a phase without a job says of itself."""
        self._say(f"{self._phase}: {line}")

    def job(self, job: Json) -> None:
        """A job begins."""
        self._steps = job["max_steps"]  # 0 for an evaluation
        self._step = -1
        self._first_step = None
        self._values = {}
        self._rollouts = 0

    def event(self, event: Json) -> None:
        """Something happened to the job."""
        body = event["body"]
        if event["kind"] == "metrics":
            self._values |= body["values"]
            if "timing_s/step" in body["values"]:  # a step's, not a validation's
                self._values["tokens/s"] = tokens_per_second(body["values"])
                self._step = body["step"]
                self._first_step = self._first_step or (body["step"], time.monotonic())
            self._say(f"{self._phase}: {self._line()}")
        elif event["kind"] == "rollout":
            self._rollouts += 1
            text = f"{self._phase}: {self._line()}  {self._rollouts} rollouts"
            self._status.update(self._text(text))
        elif event["level"] in ("warning", "error"):
            self._console.print(f"{event['level']}: {body.get('message', body)}", markup=False)

    def _line(self) -> str:
        step = self._step
        parts = [f"step {step + 1}/{self._steps}"] if step >= 0 else []
        for name, label in _SHOWN.items():
            if self._values.get(name):
                parts.append(f"{label} {self._values[name]:.3g}")
        if self._steps and self._first_step and step > self._first_step[0]:
            since, at = self._first_step
            left = (self._steps - 1 - step) * (time.monotonic() - at) / (step - since)
            parts.append(f"{left:.0f} s left")
        return "  ".join(parts)

    def _say(self, text: str) -> None:
        if self._console.is_terminal:
            self._status.update(self._text(text))
        else:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @staticmethod
    def _text(text: str) -> str:
        return text.replace("[", "\\[")


_SHOWN = {
    "rollout/reward/mean": "reward",
    "val/reward/pass_at_1": "held-out success",
    "eval/reward/mean": "reward",
    "eval/reward/pass_at_1": "success",
    "tokens/s": "tokens/s",
}


def tokens_per_second(values: dict[str, float]) -> float:
    """Sampled tokens over wall time of a step: every sampled token is in one bin of the ledger."""
    sampled = sum(value for name, value in values.items() if name.startswith("ledger/"))
    return sampled / values.get("timing_s/step", float("inf"))
