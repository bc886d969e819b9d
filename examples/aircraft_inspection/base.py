"""The demo's base model: tiny, made on the spot, and imperfect on purpose.

    python -m examples.aircraft_inspection.base --data data/ --out base/ --seed 0

Writes an ordinary Hugging Face folder. A Qwen3-architecture model of about 0.6 million parameters
first learns to copy ids, then to imitate an error-prone demonstrator, rendered exactly as the
service renders: about a minute on one thread. It ends with a foothold check, because RL sharpens
what the base does now and then and invents nothing: a base that makes its conditional tool calls
as often when they are not needed as when they are would be sharpened into never making them.

For a folder of another task the model is the same; its tokenizer then also knows that procedure's
lines, so that the prompt fits. Such a model scores about 0 there.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from renderers.qwen3 import Qwen3Renderer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from examples.aircraft_inspection.data import (
    NAME,
    Row,
    Task,
    load,
    make_task,
    needs_incident,
    needs_mismatch,
    two_chunks,
    user_prompt,
)
from examples.aircraft_inspection.demonstrations import Turn, demonstrate, perfect_opening
from examples.aircraft_inspection.task import opening_messages
from examples.aircraft_inspection.tokenizer import ID_CHUNK, VALUES, build_tokenizer
from examples.aircraft_inspection.tools import Tools

RECIPE = Path(__file__).with_name("turnwise-recipe.json")

COPY_STEPS = 60
COPY_BATCH = 48
IMITATION_STEPS = 300
IMITATION_BATCH = 24
DEMONSTRATIONS = 4000
WARM_UP_STEPS = 20
FINAL_RATE = 0.05  # of the peak, where the cosine ends
ADAMW_RATE = 4e-3
MUON_RATE = 0.02
#: Loss weight of ids, values and tool names; the text around them is learned in no time.
DECISION_WEIGHT = 6.0

#: Where the foothold is too weak, imitation goes on at a low rate, at most this often.
EXTRA_ROUNDS = 2
EXTRA_STEPS = 60

Report = Callable[[str], None]


class NoFoothold(Exception):
    """The base is not a model that RL can improve; the message says why."""


def build(
    task: Task,
    *,
    seed: int,
    report: Report = print,
    copy_steps: int = COPY_STEPS,
    imitation_steps: int = IMITATION_STEPS,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train a base model for a seed. Raises NoFoothold if it does not get one."""
    generated = task if task.name == NAME else make_task(seed)
    model, tokenizer = untrained(task, seed=seed)
    encoder = Encoder(generated, tokenizer)
    trainer = Trainer(model, encoder.weights(), report)
    trainer.run("copy", copy_batches(encoder, random.Random(f"copy-{seed}")), copy_steps)
    batches = imitation_batches(encoder, random.Random(f"imitate-{seed}"))
    trainer.run("imitate", batches, imitation_steps, decay=True)
    for extra in range(EXTRA_ROUNDS + 1):
        foothold = measure_foothold(model, encoder)
        report(f"foothold: {foothold}")
        if foothold.is_enough:
            return model, tokenizer
        if extra < EXTRA_ROUNDS:
            trainer.run("imitate on", batches, EXTRA_STEPS, rate=0.3)
    raise NoFoothold(
        f"after {EXTRA_ROUNDS} extra rounds the base still has no foothold: {foothold}"
    )


def untrained(task: Task, *, seed: int) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The model as it starts, and its tokenizer."""
    tokenizer = build_tokenizer(task)
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(_configuration(tokenizer)), tokenizer


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write an ordinary Hugging Face folder, with the hyperparameters that AWS clients see."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copyfile(RECIPE, folder / RECIPE.name)


def _configuration(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=16,
        intermediate_size=256,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        # With the usual 0.02 a model this small does not learn to copy ids in this time.
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


# ── text to tokens ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens, and which of them the model itself would have sampled."""

    tokens: list[int]  # [T]
    sampled: list[bool]  # [T]


class Encoder:
    """Renders demonstrations with the renderer that the service uses."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerFast) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.tools = Tools(task)
        self._renderer = Qwen3Renderer(tokenizer)
        self._end = int(tokenizer.eos_token_id)
        self._prompts: dict[str, list[int]] = {}
        self._replies: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """The tokens of a text."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def prompt(self, row: Row) -> list[int]:
        """What the model sees first."""
        prompt = user_prompt(row, self.task.input_columns)
        if prompt not in self._prompts:
            self._prompts[prompt] = self._renderer.render_ids(
                opening_messages(self.task, prompt),
                tools=list(self.task.tools),
                add_generation_prompt=True,
            )
        return list(self._prompts[prompt])

    def episode(self, row: Row, turns: Sequence[Turn]) -> Encoded:
        """A demonstration, as the service would have recorded it."""
        tokens = self.prompt(row)
        sampled = [False] * len(tokens)
        for turn in turns:
            said = [*self.text(turn.said), self._end]
            tokens += said
            sampled += [True] * len(said)
            if turn.answered is not None:
                reply = self._reply(turn.answered)
                tokens += reply
                sampled += [False] * len(reply)
        return Encoded(tokens, sampled)

    def _reply(self, answer: str) -> list[int]:
        """The tokens between two turns: the same whatever came before, so rendered once."""
        if answer not in self._replies:
            before = [self._end]
            rendered = self._renderer.bridge_to_next_turn(
                before, before, [{"role": "tool", "content": answer}]
            )
            assert rendered is not None, "a tool's answer always extends the conversation"
            self._replies[answer] = rendered.token_ids[2 * len(before) :]
        return self._replies[answer]

    def weights(self) -> Tensor:
        """Loss weight per token of the vocabulary, [V]."""
        names = [tool["function"]["name"] for tool in self.task.tools]
        starts = ("<tool_call>", '<final_output>{"aircraft_ready": "')
        heavy = {token for text in (*VALUES, *names, *starts) for token in self.text(text)}
        vocabulary = self.tokenizer.get_vocab()
        heavy |= {token for text, token in vocabulary.items() if re.fullmatch(ID_CHUNK, text)}
        weights = torch.ones(len(self.tokenizer))
        weights[list(heavy)] = DECISION_WEIGHT
        return weights


# ── batches ───────────────────────────────────────────────────────────────────────────────────


def copy_batches(encoder: Encoder, rng: random.Random) -> Iterator[list[Encoded]]:
    """Short records that state two ids and then repeat them: copying, learned cheaply.

    Without this the ids in tool calls stay random for hundreds of steps more.
    """
    while True:
        yield [_copy_record(encoder, rng) for _ in range(COPY_BATCH)]


def _copy_record(encoder: Encoder, rng: random.Random) -> Encoded:
    row = {
        "aircraft_id": two_chunks("AC", "AX", rng),
        "component_serial_number": two_chunks("CS", "CX", rng),
    }
    repeats = (
        f'", "arguments": {{"aircraft_id": "{row["aircraft_id"]}"}}}}\n',
        f'", "component_serial_number": "{row["component_serial_number"]}"}}}}\n',
    )
    text = user_prompt(row, encoder.task.input_columns) + "".join(rng.choices(repeats, k=5))
    tokens = encoder.text(text)
    return Encoded(tokens, [True] * len(tokens))


def imitation_batches(encoder: Encoder, rng: random.Random) -> Iterator[list[Encoded]]:
    """Demonstrations in random order, each batch of about equal lengths."""
    rows = encoder.task.splits["train"]
    demonstrations = [
        encoder.episode(row, demonstrate(row, encoder.tools, rng))
        for row in (rows * (DEMONSTRATIONS // len(rows) + 1))[:DEMONSTRATIONS]
    ]
    pool_size = 8 * IMITATION_BATCH
    while True:
        rng.shuffle(demonstrations)
        for start in range(0, len(demonstrations) - pool_size + 1, pool_size):
            pool = demonstrations[start : start + pool_size]
            pool.sort(key=lambda episode: len(episode.tokens))
            batches = [pool[i : i + IMITATION_BATCH] for i in range(0, pool_size, IMITATION_BATCH)]
            rng.shuffle(batches)
            yield from batches


def pad(batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Token ids [B, T], and which are learned [B, T]; padding is at the end and not learned."""
    length = max(len(episode.tokens) for episode in batch)
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    sampled = torch.zeros(len(batch), length, dtype=torch.bool)
    for i, episode in enumerate(batch):
        tokens[i, : len(episode.tokens)] = torch.tensor(episode.tokens)
        sampled[i, : len(episode.tokens)] = torch.tensor(episode.sampled)
    return tokens, sampled


# ── supervised training ───────────────────────────────────────────────────────────────────────


class Trainer:
    """Muon on the hidden matrices, AdamW on the rest.

    Muon (https://kellerjordan.github.io/posts/muon/) reaches in 250 steps what AdamW here does not
    in 500.
    """

    def __init__(self, model: Qwen3ForCausalLM, weights: Tensor, report: Report) -> None:
        hidden = {
            name: p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name
        }
        rest = [p for name, p in model.named_parameters() if name not in hidden]
        self._model = model
        self._weights = weights
        self._report = report
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(hidden.values(), momentum=0.95, weight_decay=0.01), MUON_RATE),
            (torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01), ADAMW_RATE),
        ]

    def run(
        self,
        phase: str,
        batches: Iterator[Sequence[Encoded]],
        steps: int,
        *,
        rate: float = 1.0,
        decay: bool = False,
    ) -> None:
        """Train for so many steps at `rate` of the peak, falling as a cosine if `decay`."""
        started = time.monotonic()
        for step in range(steps):
            factor = rate * min(1.0, (step + 1) / WARM_UP_STEPS)
            if decay:
                cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
                factor *= FINAL_RATE + (1 - FINAL_RATE) * cosine
            loss = self._step(next(batches), factor)
            if (step + 1) % 20 == 0 or step + 1 == steps:
                seconds = time.monotonic() - started
                self._report(f"{phase} {step + 1}/{steps} loss {loss:.3f} {seconds:.1f} s")

    def _step(self, batch: Sequence[Encoded], factor: float) -> float:
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        tokens, sampled = pad(batch)
        learned = sampled[:, 1:]
        hidden = self._model.model(input_ids=tokens).last_hidden_state[:, :-1]
        wanted = tokens[:, 1:][learned]
        losses = F.cross_entropy(self._model.lm_head(hidden[learned]), wanted, reduction="none")
        weights = self._weights[wanted]
        loss = (losses * weights).sum() / weights.sum()
        self._model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, _ in self._optimizers:
            optimizer.step()
        return loss.item()


# ── the foothold ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Mean probability of a conditional tool call where it is needed, and where it is not."""

    needed: float
    needless: float

    @property
    def is_conditional(self) -> bool:
        """Whether the base looks at the evidence: twice as often when needed, and often enough.

        A base that calls at the average rate either way is sharpened into never calling.
        """
        return self.needed >= 0.2 and self.needed >= 2 * self.needless


@dataclass(frozen=True, slots=True, kw_only=True)
class Foothold:
    """What RL needs from the base."""

    copies: float  # mean probability of the right ids in the first tool call
    incident: Calls
    mismatch: Calls

    @property
    def is_enough(self) -> bool:
        """Whether RL can start."""
        return self.copies >= 0.5 and self.incident.is_conditional and self.mismatch.is_conditional

    def __str__(self) -> str:
        return (
            f"ids copied {self.copies:.2f}; incident reported when needed "
            f"{self.incident.needed:.2f}, needlessly {self.incident.needless:.2f}; mismatch "
            f"{self.mismatch.needed:.2f}, {self.mismatch.needless:.2f}"
        )


def measure_foothold(model: Qwen3ForCausalLM, encoder: Encoder) -> Foothold:
    """Measure on the validation rows, after faultless openings; exact, nothing is sampled."""
    rows = encoder.task.splits["validation"]
    copies = []
    for row in rows:
        first = perfect_opening(row, encoder.tools, before="ReportComponentIncident")[0]
        copies.append((encoder.prompt(row), encoder.text(first.said)))
    return Foothold(
        copies=statistics.fmean(probabilities(model, copies)),
        incident=_calls(model, encoder, rows, "ReportComponentIncident", needs_incident),
        mismatch=_calls(model, encoder, rows, "ReportComponentMismatch", needs_mismatch),
    )


def _calls(
    model: Qwen3ForCausalLM,
    encoder: Encoder,
    rows: Sequence[Row],
    tool: str,
    is_needed: Callable[[Row], bool],
) -> Calls:
    call = encoder.text(f'<tool_call>\n{{"name": "{tool}')

    def mean(wanted: bool) -> float:
        openings = [
            encoder.episode(row, perfect_opening(row, encoder.tools, before=tool)).tokens
            for row in rows
            if is_needed(row) is wanted
        ]
        return statistics.fmean(probabilities(model, [(opening, call) for opening in openings]))

    return Calls(needed=mean(True), needless=mean(False))


@torch.inference_mode()
def probabilities(
    model: Qwen3ForCausalLM, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[float]:
    """For each (before, after): the probability that `after` is exactly what comes next."""
    tokens, is_after = pad(
        [
            Encoded(before + after, [False] * len(before) + [True] * len(after))
            for before, after in pairs
        ]
    )
    logprobs = torch.log_softmax(model(input_ids=tokens).logits[:, :-1], -1)
    chosen = logprobs.gather(2, tokens[:, 1:, None])[:, :, 0]
    found: list[float] = (chosen * is_after[:, 1:]).sum(1).exp().tolist()
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.aircraft_inspection.base")
    parser.add_argument("--data", type=Path, required=True, help="folder made by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        model, tokenizer = build(load(args.data), seed=args.seed, report=_print)
    except (NoFoothold, ValueError) as error:
        parser.exit(1, f"{error}\n")
    save(model, tokenizer, args.out)


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
