from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from turnwise.sampling.choose import Choice, choose


def choice(rows: int, **given: float | list[float]) -> Choice:
    fields = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | given
    return Choice(
        temperature=np.broadcast_to(np.array(fields["temperature"], np.float32), rows),
        top_p=np.broadcast_to(np.array(fields["top_p"], np.float32), rows),
        top_k=np.broadcast_to(np.array(fields["top_k"], np.int64), rows),
        seeds=np.full(rows, 5, np.uint64),
        counts=np.arange(rows, dtype=np.uint64),
    )


def frequencies(logits: Tensor, rows: int = 40_000, **given: float) -> Tensor:
    """How often each token is chosen."""
    tokens, _ = choose(logits.expand(rows, -1), choice(rows, **given))
    return torch.bincount(tokens, minlength=len(logits)) / rows


# A vocabulary that is searched at once, and two that are searched in whole and in broken blocks.
@pytest.mark.parametrize("vocab", [130, 1088, 1100])
def test_tokens_are_chosen_as_often_as_the_softmax_says(vocab: int) -> None:
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    found = frequencies(logits, 10_000)
    assert (found - logits.softmax(-1)).abs().max() < 0.01
    found = frequencies(logits, 10_000, temperature=0.5)
    assert (found - (2 * logits).softmax(-1)).abs().max() < 0.015


def test_truncation_keeps_the_largest_and_renormalises() -> None:
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    assert frequencies(logits, top_k=2).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=0.01)
    # 0.4 alone is less than 0.6 of the weight, 0.4 + 0.3 is more: the third is out.
    assert frequencies(logits, top_p=0.6).tolist() == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=0.01)
    # Of the two that top_k leaves, the first holds 4/7 of the weight.
    assert frequencies(logits, top_k=2, top_p=0.5).tolist() == [0, 1, 0, 0]
    assert frequencies(logits, top_k=100).tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2], abs=0.01)


def test_the_logprob_has_the_temperature_but_not_the_truncation() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    given = choice(4, temperature=[1.0, 0.5, 0.7, 0.0], top_p=0.3, top_k=[0, 5, 0, 5])
    tokens, logprobs = choose(logits, given)
    temperature = torch.tensor([1.0, 0.5, 0.7, 1.0])
    expected = (logits / temperature[:, None]).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, atol=1e-6, rtol=0)
    assert tokens[3] == logits[3].argmax()


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    given = choice(6, temperature=[1.0, 0.5, 0.0] * 2, top_p=[1.0, 0.8] * 3)
    tokens, logprobs = choose(logits, given)
    for row in range(6):
        one = Choice(
            temperature=given.temperature[row : row + 1],
            top_p=given.top_p[row : row + 1],
            top_k=given.top_k[row : row + 1],
            seeds=given.seeds[row : row + 1],
            counts=given.counts[row : row + 1],
        )
        token, logprob = choose(logits[row : row + 1], one)
        assert (token.item(), logprob.item()) == (tokens[row].item(), logprobs[row].item())


@pytest.mark.parametrize("vocab", [200, 1200])
def test_an_impossible_token_is_never_chosen(vocab: int) -> None:
    logits = torch.full((vocab,), float("-inf"))
    logits[[5, 199]] = 0.0
    assert set(frequencies(logits, rows=2000).nonzero()[:, 0].tolist()) == {5, 199}
