"""The base model's parts; a whole base takes a minute and is checked by the demo."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from examples.aircraft_inspection import base
from examples.aircraft_inspection.base import Calls, Encoder, Foothold, NoFoothold
from examples.aircraft_inspection.data import (
    make_task,
    needs_incident,
    needs_mismatch,
    user_prompt,
)
from examples.aircraft_inspection.demonstrations import demonstrate, perfect_opening
from examples.aircraft_inspection.task import (
    AnswerFormat,
    expected_outputs,
    opening_messages,
    score,
)
from examples.aircraft_inspection.tokenizer import build_tokenizer
from examples.aircraft_inspection.tools import Tools
from turnwise.domain.job import History
from turnwise.rendering import load_renderer

TASK = make_task(1)
ROW = TASK.splits["train"][0]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(TASK)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ── demonstrations ────────────────────────────────────────────────────────────────────────────


def test_demonstrations_are_right_about_a_third_of_the_time_and_never_call_in_vain() -> None:
    tools, rng, answer_format = Tools(TASK), random.Random(0), AnswerFormat.of(TASK)
    rows = TASK.splits["train"]
    runs = [(row, demonstrate(row, tools, rng)) for row in rows]
    scores = [
        score(turns[-1].said, expected_outputs(TASK, row), answer_format) for row, turns in runs
    ]
    assert 0.3 < statistics.fmean(found.metrics["exact_match"] for found in scores) < 0.4
    assert all(found.metrics["completion"] == 1.0 for found in scores)
    answers = [turn.answered for _, turns in runs for turn in turns[:-1]]
    assert not any("error" in (answer or "error") for answer in answers)
    assert {len(turns) for _, turns in runs} == {3, 4, 5, 6}


def test_a_perfect_opening_ends_where_the_conditional_tool_may_come() -> None:
    tools = Tools(TASK)
    row = next(row for row in TASK.rows if needs_incident(row) and needs_mismatch(row))
    before_incident = perfect_opening(row, tools, before="ReportComponentIncident")
    before_mismatch = perfect_opening(row, tools, before="ReportComponentMismatch")
    assert (len(before_incident), len(before_mismatch)) == (2, 3)
    assert before_mismatch[:2] == before_incident
    assert "ReportComponentIncident" in before_mismatch[2].said


# ── tokenizer and rendering ───────────────────────────────────────────────────────────────────


def test_the_tokenizer_does_not_depend_on_the_runs_seed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert build_tokenizer(make_task(2)).get_vocab() == tokenizer.get_vocab()


def test_an_episode_takes_few_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(TASK, tokenizer)
    rng = random.Random(0)
    rows = TASK.splits["train"][:200]
    episodes = [encoder.episode(row, demonstrate(row, encoder.tools, rng)) for row in rows]
    assert len(encoder.prompt(ROW)) <= 40
    assert max(len(episode.tokens) for episode in episodes) <= 200
    assert len(tokenizer) < 800


def test_what_is_copied_or_decided_is_one_token_each(tokenizer: PreTrainedTokenizerFast) -> None:
    tools = Tools(TASK)
    turn = perfect_opening(ROW, tools, before="ReportComponentIncident")[0]
    first, second = ROW["aircraft_id"].split("-")
    third, fourth = ROW["component_serial_number"].split("-")
    tokens = tokenizer.encode(turn.said, add_special_tokens=False)
    assert [tokenizer.decode([token]) for token in tokens] == [
        "<tool_call>",
        '\n{"name": "',
        "VerifyMechanicalComponents",
        '", "arguments": {"aircraft_id": "',
        first,
        f"-{second}",
        '", "component_serial_number": "',
        third,
        f"-{fourth}",
        '"}}\n',
        "</tool_call>",
    ]


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Größe 12 µm \n\t{'a': 1} 你好 <tool_call> AC17-AX05 # Tools\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of a few steps, saved as the command saves it."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model, tokenizer = base.untrained(TASK, seed=0)
    trainer = base.Trainer(model, Encoder(TASK, tokenizer).weights(), lambda line: None)
    trainer.run("copy", base.copy_batches(Encoder(TASK, tokenizer), random.Random(0)), 2)
    base.save(model, tokenizer, folder)
    return folder


def test_demonstrations_are_rendered_as_the_service_renders(
    built: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = Encoder(TASK, tokenizer)
    turns = demonstrate(ROW, encoder.tools, random.Random(3))
    episode = encoder.episode(ROW, turns)

    renderer = load_renderer(built, History.TEMPLATE)
    tools = list(TASK.tools)
    tokens = renderer.render(
        opening_messages(TASK, user_prompt(ROW, TASK.input_columns)), tools
    ).tolist()
    sampled = [False] * len(tokens)
    for turn in turns:
        said = [*encoder.text(turn.said), renderer.stop_ids[0]]
        if turn.answered is not None:
            prompt, completion = np.array(tokens, np.int32), np.array(said, np.int32)
            parsed = renderer.parse(prompt, completion, tools)
            assert parsed.has_tool_calls
            message = {"role": "tool", "tool_call_id": "call_1", "content": turn.answered}
            bridge = renderer.bridge(prompt, completion, [message], tools)
            assert bridge is not None
            tokens, more = [*tokens, *said, *bridge.tolist()], len(bridge)
        else:
            tokens, more = [*tokens, *said], 0
        sampled += [True] * len(said) + [False] * more
    assert (episode.tokens, episode.sampled) == (tokens, sampled)


def test_the_chat_template_agrees_with_the_renderer(
    built: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    saved = AutoTokenizer.from_pretrained(built)
    messages = opening_messages(TASK, user_prompt(ROW, TASK.input_columns))
    text = saved.apply_chat_template(
        messages, tools=list(TASK.tools), tokenize=False, add_generation_prompt=True
    )
    assert saved.encode(text, add_special_tokens=False) == Encoder(TASK, tokenizer).prompt(ROW)


# ── training ──────────────────────────────────────────────────────────────────────────────────


def test_the_base_is_an_ordinary_hugging_face_folder(built: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(built)
    assert model.config.model_type == "qwen3"
    assert model.generation_config.use_cache
    assert sum(p.numel() for p in model.parameters()) < 700_000
    names = {path.name for path in built.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_training_lowers_the_loss_and_follows_its_seed() -> None:
    def losses(seed: int) -> list[str]:
        lines: list[str] = []
        model, tokenizer = base.untrained(TASK, seed=seed)
        encoder = Encoder(TASK, tokenizer)
        trainer = base.Trainer(model, encoder.weights(), lines.append)
        batches = base.copy_batches(encoder, random.Random(seed))
        for _ in range(3):
            trainer.run("copy", batches, 1)
        return [line.split("loss ")[1].split()[0] for line in lines]

    first = losses(0)
    assert float(first[-1]) < float(first[0])
    assert losses(0) == first
    assert losses(1) != first


def test_a_batch_is_padded_at_the_end_with_what_is_not_learned() -> None:
    episodes = [base.Encoded([5, 6, 7], [False, True, True]), base.Encoded([8], [True])]
    tokens, sampled = base.pad(episodes)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert sampled.tolist() == [[False, True, True], [True, False, False]]


def test_the_probability_of_a_continuation_does_not_depend_on_the_padding(built: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(built)
    pairs = [([5, 6, 7], [8, 9]), ([5, 6, 7, 8, 9, 10], [11])]
    together = base.probabilities(model, pairs)
    apart = [base.probabilities(model, [pair])[0] for pair in pairs]
    assert together == pytest.approx(apart, rel=1e-4)
    logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    assert apart[0] == pytest.approx((logits[2, 8] + logits[3, 9]).exp().item(), rel=1e-4)


# ── the foothold ──────────────────────────────────────────────────────────────────────────────

GOOD = Calls(needed=0.4, needless=0.05)


@pytest.mark.parametrize(
    ("foothold", "is_enough"),
    [
        (Foothold(copies=0.99, incident=GOOD, mismatch=GOOD), True),
        (Foothold(copies=0.10, incident=GOOD, mismatch=GOOD), False),
        (Foothold(copies=0.99, incident=Calls(needed=0.5, needless=0.45), mismatch=GOOD), False),
        (Foothold(copies=0.99, incident=GOOD, mismatch=Calls(needed=0.1, needless=0.0)), False),
    ],
)
def test_a_foothold_needs_copied_ids_and_calls_that_follow_the_evidence(
    foothold: Foothold, is_enough: bool
) -> None:
    assert foothold.is_enough is is_enough


def test_a_base_that_gets_no_foothold_is_refused_with_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "EXTRA_STEPS", 1)
    monkeypatch.setattr(base, "DEMONSTRATIONS", 8 * base.IMITATION_BATCH)
    lines: list[str] = []
    with pytest.raises(NoFoothold, match=r"after 2 extra rounds .* ids copied 0\.00; incident"):
        base.build(TASK, seed=0, report=lines.append, copy_steps=1, imitation_steps=1)
    assert sum(line.startswith("imitate on") for line in lines) == 2
