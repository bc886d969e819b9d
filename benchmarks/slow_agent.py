"""A Python agent that waits before each turn: log-normal, median 0.3 s, sigma 1."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from typing import Any

from turnwise.agents import PythonRollout

TURNS = 2
MEDIAN_S = 0.3
SIGMA = 1.0


async def rollout(request: PythonRollout) -> Mapping[str, Any]:
    """A few turns, each after a log-normal wait; the reward is the share of lower-case letters."""
    rng = random.Random(request.rollout_id)
    messages: list[Any] = []
    waited, said = 0.0, ""
    for text in [request.prompt, *["more"] * (TURNS - 1)]:
        wait = rng.lognormvariate(math.log(MEDIAN_S), SIGMA)
        await asyncio.sleep(wait)
        waited += wait
        messages.append({"role": "user", "content": text})
        reply = await request.chat(messages)
        message = reply["choices"][0]["message"]
        messages.append(message)
        said += message["content"] or ""
    reward = sum(c.islower() for c in said) / max(1, len(said))
    return {"reward": reward, "metrics": {"waited_s": waited}}
