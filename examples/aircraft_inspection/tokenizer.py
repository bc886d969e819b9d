"""The base model's tokenizer: byte-level BPE with Qwen3's special tokens.

A tiny model affords few tokens per episode, so whatever never varies is long tokens: a line of the
system prompt is one token, and the fixed text between two decisions merges into one or two. What
the model must decide or copy stays apart: values, tool names and the chunks of ids.

The tokenizer does not depend on the run's seed: a base and its tokenizer belong together, and
different ids for the same text would make the same weights worthless.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.aircraft_inspection.data import CHUNK_VALUES, Task, make_task, user_prompt
from examples.aircraft_inspection.demonstrations import CHOICES, demonstrate
from examples.aircraft_inspection.task import opening_messages
from examples.aircraft_inspection.tools import Tools

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
#: As in Qwen3, added but not special: skipping special tokens keeps them.
MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
ID_CHUNK = r"-?[A-Z]{2}[0-9]{2}"
VALUES = (
    *sorted({choice for choices in CHOICES.values() for choice in choices}),
    *("match", "differs", "operational", "low", "critical", "failure"),
)
#: Characters; a shorter line of the system prompt is no token of its own.
SHORTEST_LINE = 8
VOCABULARY = 1024

#: Qwen3's chat format, without the parts for reasoning, which this model does not do.
CHAT_TEMPLATE = """\
{%- if tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif -%}
{{ '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n\
You are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor -%}
{{ '\n</tools>\n\nFor each function call, return a json object with function name and arguments \
within <tool_call></tool_call> XML tags:\n<tool_call>\n\
{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' -%}
{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}
{{ '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif -%}
{%- elif message.role == 'assistant' -%}
{{ '<|im_start|>assistant\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- if message.content or not loop.first %}{{ '\n' }}{% endif -%}
{{ '<tool_call>\n{"name": "' + function.name + '", "arguments": ' }}
{%- if function.arguments is string %}{{ function.arguments }}
{%- else %}{{ function.arguments | tojson }}{% endif -%}
{{ '}\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\n' }}
{%- elif message.role == 'user' or not loop.first -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""


def build_tokenizer(task: Task) -> PreTrainedTokenizerFast:
    """A tokenizer for the generated task and, if it is another one, for `task`'s procedure."""
    generated = make_task(0)
    tokenizer = Tokenizer(models.BPE())
    apart = "|".join((*VALUES, *(tool["function"]["name"] for tool in generated.tools)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"{ID_CHUNK}|\b(?:{apart})\b"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(generated), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKERS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    for each in (generated, task):
        lines = [AddedToken(line, normalized=False) for line in fixed_lines(fast, each)]
        fast.add_tokens(lines)
    return fast


def fixed_lines(tokenizer: PreTrainedTokenizerFast, task: Task) -> list[str]:
    """The lines of a task's system prompt, tools included; short lines join the next one."""
    rendered = str(
        tokenizer.apply_chat_template(
            opening_messages(task, ""), tools=list(task.tools), tokenize=False
        )
    )
    system = rendered.split("<|im_end|>")[0].removeprefix("<|im_start|>")
    found: dict[str, None] = {}
    for piece in re.split("|".join(map(re.escape, MARKERS)), system):
        pending = ""
        for line in piece.splitlines(keepends=True):
            pending += line
            if len(line) >= SHORTEST_LINE:
                found[pending] = None
                pending = ""
    return list(found)


def _training_texts(generated: Task) -> Iterator[str]:
    """What lies between special tokens in demonstrations of a fixed seed; and every id chunk."""
    rng = random.Random(0)
    tools = Tools(generated)
    for row in generated.splits["train"][:400]:
        yield "user\n" + user_prompt(row, generated.input_columns)
        for turn in demonstrate(row, tools, rng):
            yield "assistant\n"
            yield from turn.said.replace("</tool_call>", "<tool_call>").split("<tool_call>")
            if turn.answered is not None:
                yield f"\n{turn.answered}\n"
    for chunk in ("AC", "-AX", "CS", "-CX"):
        for number in range(CHUNK_VALUES):
            yield from [f"{chunk}{number:02d}"] * 100
