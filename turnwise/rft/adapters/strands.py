"""Strands: a model whose calls belong to the rollout under way."""

from __future__ import annotations

import copy
from typing import Any

from turnwise.rft.context import get_inference_params, get_rollout_context
from turnwise.rft.headers import make_inference_headers

#: How strands names a sampling parameter, and the two spellings that a rollout may have it in.
_PARAMS = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens", "maxTokens"),
    "top_p": ("top_p", "topP"),
}


def wrap_model(model: Any) -> Any:
    """A stand-in for a Strands model (`OpenAIModel`, `LiteLLMModel`) whose calls are the rollout's.

        model = wrap_model(OpenAIModel(model_id="default"))

        @rft_handler
        async def rollout(payload):
            result = await Agent(model=model).invoke_async(payload["prompt"])
            return {"reward": grade(result)}

    Each call is made by a copy of the model with the rollout's headers and sampling parameters, so
    one model may serve many rollouts at once. A model that was given neither `base_url` nor
    `client` calls the rollout's own endpoint (an addition). Outside of a rollout the model is as
    it was.
    """
    return _Wrapped(model)


class _Wrapped:
    """Everything but a call is the inner model's."""

    def __init__(self, inner: Any) -> None:
        object.__setattr__(self, "_inner", inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """As the inner model's, for this rollout."""
        return _for_this_rollout(self._inner).stream(*args, **kwargs)

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        """As the inner model's, for this rollout."""
        return _for_this_rollout(self._inner).structured_output(*args, **kwargs)


def _for_this_rollout(model: Any) -> Any:
    metadata = get_rollout_context()
    if metadata is None:
        return model
    one = copy.copy(model)
    params = dict(model.config.get("params") or {})
    headers = {**params.get("extra_headers", {}), **make_inference_headers(metadata)}
    params |= {**_sampling(), "extra_headers": headers}
    one.config = {**model.config, "params": params}
    client_args = getattr(model, "client_args", None)
    has_client = getattr(model, "_custom_client", None) is not None
    if client_args is not None and not has_client and metadata.get("endpoint"):
        own = {"base_url": f"{metadata['endpoint']}/v1", "api_key": "unused"}
        if "base_url" not in client_args:
            one.client_args = {**own, **client_args}
    return one


def _sampling() -> dict[str, Any]:
    given = get_inference_params() or {}
    found = {
        name: next((given[key] for key in spellings if given.get(key) is not None), None)
        for name, spellings in _PARAMS.items()
    }
    return {name: value for name, value in found.items() if value is not None}
