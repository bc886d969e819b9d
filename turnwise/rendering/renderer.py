"""`ports.Renderer` over one family of the `renderers` package."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from turnwise.domain.rollout import Message, Tokens
from turnwise.errors import InvalidInput
from turnwise.ports import Parsed
from turnwise.rendering.messages import template_messages
from turnwise.rendering.stops import StopStrings
from turnwise.rendering.stream import CallBlock, Grammar, ReplyReader, ToolCall, join
from turnwise.rendering.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]]

# The end of a prompt that may hold an opening reasoning marker: a few tokens where the marker is
# spelled out, and the newline after it.
_PROMPT_TAIL = 16


class ChatRenderer:
    """One chat family.

    `template` is the family's renderer with its template's own rule about earlier reasoning,
    `keeping` the same with all of it kept; with `exact` only the latter decides about bridges.
    """

    def __init__(
        self, tokenizer: Tokenizer, grammar: Grammar, *, template: Any, keeping: Any, exact: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._grammar = grammar
        self._template = template
        self._keeping = keeping
        self._exact = exact
        self._stop_ids = tuple(int(id) for id in template.get_stop_token_ids())

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an assistant's turn."""
        return self._stop_ids

    def render(self, messages: Sequence[Message], tools: Tools) -> Tokens:
        """The prompt for the assistant's next turn, as the family's template writes it.

        Raises `InvalidInput` for what the model cannot see or the template cannot express.
        """
        shown = template_messages(messages)
        if not shown:
            raise InvalidInput("messages", [], "is empty", remedy="send at least one message")
        try:
            ids = self._template.render_ids(
                shown, tools=_tool_specs(tools), add_generation_prompt=True
            )
        except (ValueError, TypeError) as error:
            raise _not_expressible(shown, error) from error
        return np.asarray(ids, np.int32)

    def bridge(
        self, prompt: Tokens, completion: Tokens, messages: Sequence[Message], tools: Tools
    ) -> Tokens | None:
        """Tokens to put after prompt + completion for the new messages and the next turn.

        None where the family's template would drop reasoning that these tokens hold, and where
        the new messages hold one of the assistant's. A family whose template drops nothing here
        (there is no reasoning) is bridged although a user message opens a new query.
        """
        shown = template_messages(messages)
        earlier, said = prompt.tolist(), completion.tolist()
        if not self._exact:
            suffix = self._suffix(self._template, earlier, said, shown, tools)
            if suffix is not None or self._holds_reasoning(earlier + said):
                return suffix
        return self._suffix(self._keeping, earlier, said, shown, tools)

    def parse(self, prompt: Tokens, completion: Tokens, tools: Tools) -> Parsed:
        """Read a completion: content and reasoning without white space at their ends."""
        reader = self.stream(prompt, tools)
        message = join([*reader.feed(completion), *reader.finish()])
        return Parsed(message=message, has_tool_calls="tool_calls" in message)

    def stream(self, prompt: Tokens, tools: Tools) -> ReplyReader:
        """A reader for a completion as it is sampled."""
        specs = _tool_specs(tools)
        seed = prompt.astype("<i4").tobytes()
        # Without tools on offer, a JSON object is just the answer.
        bare_calls = self._grammar.bare_calls and specs is not None
        return ReplyReader(
            self._tokenizer,
            replace(self._grammar, bare_calls=bare_calls),
            stop_ids=self._stop_ids,
            in_reasoning=self._opens_reasoning(prompt),
            read_block=lambda block: self._read_block(block, specs),
            call_id=lambda index, block: _call_id(seed, index, block),
        )

    def stops(self, strings: Sequence[str]) -> StopStrings:
        """A watcher for stop strings."""
        return StopStrings(self._tokenizer, strings)

    def decode(self, tokens: Tokens) -> str:
        """The text of tokens, special tokens included."""
        return self._tokenizer.decode(tokens.tolist())

    def _suffix(
        self,
        inner: Any,
        prompt: list[int],
        completion: list[int],
        messages: list[dict[str, Any]],
        tools: Tools,
    ) -> Tokens | None:
        """The family's bridge, with reasoning that the model stopped in taken as ended there.

        The package refuses such a completion. What follows it depends on its last token alone,
        so it is asked about a completion that closes its reasoning and ends in the same token.
        """
        suffix = _bridged(inner, prompt, completion, messages, tools)
        close = self._grammar.think_close
        if suffix is None and close and completion and completion[-1] in self._stop_ids:
            closed = [*self._tokenizer.encode(close), completion[-1]]
            suffix = _bridged(inner, prompt, closed, messages, tools)
        return suffix

    def _holds_reasoning(self, tokens: list[int]) -> bool:
        opened, closed = self._grammar.think_open, self._grammar.think_close
        if not opened or not closed:
            return False
        pattern = rf"{re.escape(opened)}\s*(?!{re.escape(closed)})\S"
        return re.search(pattern, self._tokenizer.decode(tokens)) is not None

    def _opens_reasoning(self, prompt: Tokens) -> bool:
        opened = self._grammar.think_open
        tail = self._tokenizer.decode(prompt[-_PROMPT_TAIL:].tolist())
        return opened is not None and tail.rstrip().endswith(opened)

    def _read_block(self, block: list[int], tools: list[dict[str, Any]] | None) -> CallBlock:
        try:
            attempts = self._template.parse_response(block, tools=tools).tool_calls
        except (ValueError, RecursionError):  # numbers of 5,000 digits, lists 1,000 deep
            attempts = []
        read = [(attempt, _readable(attempt)) for attempt in attempts]
        spans = {attempt.token_span or (0, len(block)) for attempt, call in read if call is None}
        if not attempts:
            spans = {(0, len(block))}
        return CallBlock(
            calls=tuple(call for _, call in read if call is not None),
            rest="".join(self._tokenizer.decode(block[a:b]) for a, b in sorted(spans)),
        )


def _bridged(
    inner: Any,
    prompt: list[int],
    completion: list[int],
    messages: list[dict[str, Any]],
    tools: Tools,
) -> Tokens | None:
    """The package's bridge as what it appends; None where it refuses or changes a token."""
    try:
        rendered = inner.bridge_to_next_turn(prompt, completion, messages, tools=_tool_specs(tools))
    except (ValueError, TypeError) as error:
        raise _not_expressible(messages, error) from error
    if rendered is None:
        return None
    earlier = [*prompt, *completion]
    ids = rendered.token_ids
    if ids[: len(earlier)] != earlier:
        return None
    return np.asarray(ids[len(earlier) :], np.int32)


def _readable(attempt: Any) -> ToolCall | None:
    """The call, if it has a name and an object of arguments that JSON can carry.

    A value that does not fit its declared type is still a call: judging it is the agent's part.
    """
    arguments = attempt.arguments
    if str(attempt.status) not in ("ok", "invalid_json") or not isinstance(attempt.name, str):
        return None
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not attempt.name or not isinstance(arguments, dict):
            return None
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        (text + attempt.name).encode()  # half a surrogate pair cannot be sent
    except (ValueError, RecursionError):
        return None
    return ToolCall(attempt.name, text)


def _call_id(seed: bytes, index: int, block: list[int]) -> str:
    """The same for the same tokens, different between the turns of a conversation."""
    digest = hashlib.sha256(seed)
    digest.update(np.asarray([index, *block], "<i4").tobytes())
    return f"call_{digest.hexdigest()[:24]}"


def _tool_specs(tools: Tools) -> list[dict[str, Any]] | None:
    """None for no tools: some templates announce an empty list."""
    return [dict(tool) for tool in tools] or None


def _not_expressible(messages: list[dict[str, Any]], error: Exception) -> InvalidInput:
    return InvalidInput(
        "messages",
        [message["role"] for message in messages],
        f"do not fit the model's chat template: {error}",
    )
