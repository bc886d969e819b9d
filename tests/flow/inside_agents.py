"""Python agents for flow tests: functions that a server can import, without torch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from turnwise.agents import PythonRollout


async def chatty(request: PythonRollout) -> Mapping[str, Any]:
    """Two turns; the reward is the share of the replies' characters that are lower-case."""
    messages: list[Mapping[str, Any]] = [{"role": "user", "content": request.prompt}]
    said = ""
    for _ in range(2):
        reply = await request.chat(messages)
        message = reply["choices"][0]["message"]
        said += message["content"] or ""
        messages += [message, {"role": "user", "content": "more"}]
    return {
        "reward": sum(c.islower() for c in said) / max(1, len(said)),
        "metrics": {"characters": len(said)},
    }


async def unreliable(request: PythonRollout) -> Mapping[str, Any]:
    """As `chatty`, after a wait of random length; every fifth rollout or so breaks midway."""
    rng = random.Random(request.rollout_id)
    await asyncio.sleep(rng.expovariate(1 / 0.05))
    done = await chatty(request)
    if rng.random() < 0.2:
        raise RuntimeError("a tool broke")
    return done
