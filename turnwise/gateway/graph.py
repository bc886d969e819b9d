"""Which earlier turn does a request extend? A rollout's messages as a graph. Pure.

    root prompt [system, user] ── completion [assistant] ── prompt [tool] ── completion [assistant]
                               └─ completion [assistant]      (the same request asked twice)
    root prompt [system, user, assistant, user] ── ...        (a fork: the model sees other tokens)

Prompt nodes hold what the agent said, completions what the model said. A request extends the
completion whose path is the longest prefix of its messages. Assistant messages are compared by
meaning, because agents parse and rewrite them on the way: tool-call arguments equal as JSON,
white space at the ends and reasoning that is not echoed are no difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from turnwise.domain.rollout import ForkCause, Message, Node, NodeKind, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where a request belongs in the graph.

    `completion` is the turn it extends (None: a new root) and `new` its messages from there on.
    `prompt` is a node that already holds exactly this request. `cause` says why the request does
    not simply continue `completion`, None if it does or if it is a conversation of its own.
    """

    completion: int | None
    new: tuple[Message, ...]
    prompt: int | None = None
    cause: ForkCause | None = None


class Graph:
    """The nodes of one rollout, for looking up requests."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._children: dict[int | None, list[int]] = {None: []}
        self._unseen: set[int] = set()

    def add(self, node: Node, *, delivered: bool = True) -> None:
        """Append the next node. The agent has not seen an undelivered completion."""
        if node.node_id != len(self.nodes):
            raise ValueError(f"node {node.node_id} added where {len(self.nodes)} is next")
        if not delivered:
            self._unseen.add(node.node_id)
        self.nodes.append(node)
        self._children[node.node_id] = []
        # Last, because a thread may be matching a large request: it finds nodes by their parents.
        self._children[node.parent].append(node.node_id)

    def conceal(self, node_id: int) -> None:
        """A completion turned out not to have reached the agent."""
        self._unseen.add(node_id)

    def path_tokens(self, node_id: int | None) -> Tokens:
        """All tokens from the root to the node, it included."""
        pieces: list[Tokens] = []
        while node_id is not None:
            node = self.nodes[node_id]
            pieces.append(node.tokens)
            node_id = node.parent
        return np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.int32)

    def find_prompt(
        self, parent: int | None, tokens: Tokens, tools_sha256: str, messages: Sequence[Message]
    ) -> int | None:
        """A child of `parent` that adds exactly these messages and tokens."""
        for child in self._children[parent]:
            node = self.nodes[child]
            if (
                node.kind is NodeKind.PROMPT
                and node.tools_sha256 == tools_sha256
                and np.array_equal(node.tokens, tokens)
                and len(node.messages) == len(messages)
                and all(map(same_message, node.messages, messages))
            ):
                return child
        return None

    def match(self, messages: Sequence[Message], tools_sha256: str) -> Match:
        """Find the turn that a request extends."""
        best, consumed, exact, exact_from = None, 0, None, -1
        for node_id, start, end in self._matching(messages, tools_sha256):
            if self.nodes[node_id].kind is NodeKind.PROMPT:
                if end == len(messages) and start >= exact_from:
                    exact, exact_from = node_id, start
            elif end >= consumed:
                best, consumed = node_id, end
        if exact is not None:
            return Match(
                completion=self.nodes[exact].parent,
                new=tuple(messages[exact_from:]),
                prompt=exact,
                cause=self.nodes[exact].fork_cause,
            )
        new = tuple(messages[consumed:])
        cause = self._cause(messages, tools_sha256) if _has_assistant(new) else None
        return Match(completion=best, new=new, cause=cause)

    def _matching(
        self, messages: Sequence[Message], tools_sha256: str
    ) -> Iterator[tuple[int, int, int]]:
        """Nodes whose path is a prefix of the messages: (node, where it begins, where it ends)."""
        todo = [(root, 0) for root in self._children[None]]
        while todo:
            node_id, start = todo.pop(0)
            node = self.nodes[node_id]
            end = start + len(node.messages)
            if node.parent is None and node.tools_sha256 != tools_sha256:
                continue
            if node_id in self._unseen or not _begins(messages, start, node):
                continue
            yield node_id, start, end
            todo += [(child, end) for child in self._children[node_id]]

    def _cause(self, messages: Sequence[Message], tools_sha256: str) -> ForkCause | None:
        """Why messages that hold replies are no known path, judged by the likest one."""
        likest: tuple[int, list[Message]] | None = None
        for path, path_tools in self._paths():
            if not _related(messages, path):
                continue
            common = _common(messages, path)
            if path_tools != tools_sha256 and common in (len(path), len(messages)):
                return ForkCause.REWRITTEN_HISTORY
            if likest is None or common >= likest[0]:
                likest = (common, path)
        return None if likest is None else _difference(messages, likest[1])

    def _paths(self) -> Iterator[tuple[list[Message], str]]:
        """The messages of each path from a root to a seen completion, and the root's tools."""
        for node in self.nodes:
            if node.kind is NodeKind.COMPLETION and node.node_id not in self._unseen:
                path: list[Message] = []
                at: int | None = node.node_id
                tools = ""
                while at is not None:
                    path = [*self.nodes[at].messages, *path]
                    tools = self.nodes[at].tools_sha256
                    at = self.nodes[at].parent
                yield path, tools


def tools_sha256(tools: Sequence[Mapping[str, Any]]) -> str:
    """Identity of a request's tools; "" for none."""
    if not tools:
        return ""
    text = json.dumps(list(tools), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def path_sha256(prompt: Tokens) -> bytes:
    """Identity of a place in the graph: of all tokens that the model sees there."""
    return hashlib.sha256(prompt.astype("<i4", copy=False).tobytes()).digest()


def turn_seed(place: Sequence[int | str], path: bytes, nth: int, asked: int | None) -> int:
    """Seed of a turn: a hash of the rollout's place, the path in its graph, and the repetition.

    63 bits, so that it fits a signed 64-bit column. `place` is (job seed, purpose, step, row,
    slot, attempt); `path` is a `path_sha256`, so that the order in which parallel requests arrive
    does not matter; `asked` is the request's own seed.
    """
    digest = hashlib.sha256(json.dumps([list(place), nth, asked]).encode() + path)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def same_message(known: Message, sent: Message) -> bool:
    """Whether an echoed message is the known one: assistants by meaning, others to the letter."""
    if known == sent:  # the common case, and quick
        return True
    if known.get("role") != sent.get("role"):
        return False
    if known.get("role") == "assistant":
        return _same_assistant(known, sent)
    return _plain(known) == _plain(sent)


def _same_assistant(known: Message, sent: Message) -> bool:
    if _text(known.get("content")).strip() != _text(sent.get("content")).strip():
        return False
    if not _same_calls(known, sent):
        return False
    thought, echoed = _reasoning(known), _reasoning(sent)
    return not thought or not echoed or thought == echoed


def _text(content: Any) -> str:
    """Content as text, whether it came as None, a string or text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part.get("text", "")) for part in content)


def _reasoning(message: Message) -> str:
    return str(message.get("reasoning_content") or message.get("reasoning") or "").strip()


def _same_calls(known: Message, sent: Message) -> bool:
    """Whether names and arguments agree; the ids of tool calls are names, not meaning."""
    ours, theirs = _calls(known), _calls(sent)
    return len(ours) == len(theirs) and all(map(_same_call, ours, theirs))


def _calls(message: Message) -> list[tuple[str, Any]]:
    functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    return [(str(f.get("name")), f.get("arguments")) for f in functions]


def _same_call(known: tuple[str, Any], sent: tuple[str, Any]) -> bool:
    if known[0] != sent[0]:
        return False
    if isinstance(known[1], str) and known[1] == sent[1]:  # the common case, and quick
        return True
    return _arguments(known[1]) == _arguments(sent[1])


def _arguments(value: Any) -> str:
    """Arguments as canonical JSON; text that is no JSON is compared as it is.

    JSON knows one kind of number: 1.0 is written as 1. (Python's == would also take True for 1.)
    """
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        read = json.loads(text or "{}", parse_float=_number)
    except (ValueError, RecursionError):
        return text.strip()
    return json.dumps(read or {}, sort_keys=True)


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


def _plain(message: Message) -> dict[str, Any]:
    rest = {k: v for k, v in message.items() if v is not None and k != "content"}
    return rest | {"content": _text(message.get("content"))}


def _begins(messages: Sequence[Message], start: int, node: Node) -> bool:
    """Whether `messages[start:]` begins with the node's messages."""
    if start + len(node.messages) > len(messages):
        return False
    return all(same_message(known, messages[start + i]) for i, known in enumerate(node.messages))


def _has_assistant(messages: Sequence[Message]) -> bool:
    return any(message.get("role") == "assistant" for message in messages)


def _common(messages: Sequence[Message], path: Sequence[Message]) -> int:
    """Length of the common beginning."""
    count = 0
    for known, sent in zip(path, messages, strict=False):
        if not same_message(known, sent):
            break
        count += 1
    return count


def _related(messages: Sequence[Message], path: Sequence[Message]) -> bool:
    """Whether the messages hold a reply of the path, or another one where the path has one."""
    at = _common(messages, path)
    if at == len(path) or (at < len(messages) and _both_assistant(path[at], messages[at])):
        return at > 0
    said = [m for m in path if m.get("role") == "assistant"]
    sent = [m for m in messages if m.get("role") == "assistant"]
    return any(same_message(known, echo) for known in said for echo in sent)


def _difference(messages: Sequence[Message], path: Sequence[Message]) -> ForkCause:
    """What was done to `path` to get `messages`."""
    at = _common(messages, path)
    last = max(i for i, m in enumerate(messages) if m.get("role") == "assistant")
    if at < len(path) and _is_subsequence(messages[at : last + 1], path[at + 1 :]):
        return ForkCause.TRUNCATED
    if at == len(path) or _both_assistant(path[at], messages[at]):
        return ForkCause.EDITED_ASSISTANT
    return ForkCause.REWRITTEN_HISTORY


def _both_assistant(known: Message, sent: Message) -> bool:
    return known.get("role") == "assistant" and sent.get("role") == "assistant"


def _is_subsequence(part: Sequence[Message], whole: Sequence[Message]) -> bool:
    rest = iter(whole)
    return all(any(same_message(known, sent) for known in rest) for sent in part)
