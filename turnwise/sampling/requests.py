"""What every sampler refuses, in the same words."""

from __future__ import annotations

from turnwise import errors
from turnwise.domain.rollout import Tokens
from turnwise.ports import SampleRequest, SamplerInfo


def check_request(request: SampleRequest, info: SamplerInfo) -> None:
    """Raise `InvalidInput` for a prompt or sampling parameters that cannot be served."""
    _check_prompt(request, info)
    params = request.sampling
    if not params.temperature >= 0:
        raise errors.InvalidInput("temperature", params.temperature, "must be at least 0")
    if not 0 < params.top_p <= 1:
        raise errors.InvalidInput("top_p", params.top_p, "must be above 0 and at most 1")
    if params.top_k < 0:
        raise errors.InvalidInput("top_k", params.top_k, "must be at least 0", remedy="0 is off")
    if params.max_tokens < 1:
        raise errors.InvalidInput("max_tokens", params.max_tokens, "must be at least 1")


def max_new_tokens(request: SampleRequest, info: SamplerInfo) -> int:
    """How many tokens fit: the request's own limit, or what the context leaves."""
    return min(request.sampling.max_tokens, info.max_length - len(request.prompt))


def _check_prompt(request: SampleRequest, info: SamplerInfo) -> None:
    prompt = request.prompt
    if len(prompt) == 0:
        raise errors.InvalidInput("prompt", [], "must hold at least one token")
    if len(prompt) >= info.max_length:
        raise errors.InvalidInput(
            "prompt",
            f"{len(prompt)} tokens",
            f"leaves no room for a reply in a context of {info.max_length} tokens",
            remedy="shorten the messages or serve the model with a larger max_length",
        )
    _check_vocabulary("prompt", prompt, info)


def check_scored(tokens: Tokens, info: SamplerInfo) -> None:
    """Raise `InvalidInput` for tokens that cannot be scored."""
    if len(tokens) > info.max_length:
        raise errors.InvalidInput(
            "tokens", f"{len(tokens)} tokens", f"exceed a context of {info.max_length} tokens"
        )
    if len(tokens):
        _check_vocabulary("tokens", tokens, info)


def _check_vocabulary(field: str, tokens: Tokens, info: SamplerInfo) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= info.vocab_size:
        token = low if low < 0 else high
        raise errors.InvalidInput(field, token, f"is no token of a vocabulary of {info.vocab_size}")
