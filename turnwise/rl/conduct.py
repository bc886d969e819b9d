"""What the model did in its turns: tools called, turns used up, the shape of its last words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from turnwise.domain.evaluation import metric_word
from turnwise.domain.rollout import Message, Trajectory

#: A model may make up names: tools beyond the most used of this many are not counted by name.
MAX_TOOLS = 50


def conversation(trajectory: Trajectory) -> tuple[Message, ...]:
    """The messages that lead to the last delivered reply, that reply included."""
    if not trajectory.delivered:
        return ()
    path = trajectory.path(trajectory.delivered[-1].leaf)
    return tuple(message for node in path for message in node.messages)


def conduct_metrics(
    trajectories: Sequence[Trajectory], *, prefix: str, max_turns: int = 0, pattern: str = ""
) -> dict[str, float]:
    """{prefix}/tools/*, /turns/* and /format/* over scored rollouts.

    `max_turns` 0 and `pattern` "" mean that there is nothing to compare with.
    """
    values = _tool_metrics(trajectories, f"{prefix}/tools")
    if trajectories and max_turns:
        full = sum(len(t.delivered) >= max_turns for t in trajectories)
        values[f"{prefix}/turns/at_limit_frac"] = full / len(trajectories)
    if trajectories and pattern:
        matched = sum(last_words_match(t, pattern) for t in trajectories)
        values[f"{prefix}/format/match_frac"] = matched / len(trajectories)
    return values


def last_words_match(trajectory: Trajectory, pattern: str) -> bool:
    """Whether the pattern is found in the text of the last delivered reply."""
    said = conversation(trajectory)
    return bool(said) and re.search(pattern, _text(said[-1].get("content"))) is not None


def tool_calls(trajectory: Trajectory) -> Iterator[tuple[str, bool]]:
    """Each call in the delivered replies: its tool, and whether its arguments are a JSON object."""
    for turn in trajectory.delivered:
        for message in trajectory.nodes[turn.leaf].messages:
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                yield str(function.get("name", "")), _is_object(function.get("arguments"))


def _tool_metrics(trajectories: Sequence[Trajectory], prefix: str) -> dict[str, float]:
    calls = [call for t in trajectories for call in tool_calls(t)]
    if not calls:
        return {}
    names = Counter(metric_word(name) for name, _ in calls)
    values = {
        f"{prefix}/calls_mean": len(calls) / len(trajectories),
        f"{prefix}/valid_arguments_frac": sum(is_object for _, is_object in calls) / len(calls),
    }
    for name, count in names.most_common(MAX_TOOLS):
        values[f"{prefix}/by_name/{name}/calls_mean"] = count / len(trajectories)
    return values


def _is_object(arguments: Any) -> bool:
    try:
        return isinstance(json.loads(arguments), Mapping)
    except (TypeError, ValueError, RecursionError):
        return isinstance(arguments, Mapping)


def _text(content: Any) -> str:
    """OpenAI's content: a string, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else ()
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))
