"""LangChain: HTTP clients whose requests carry the headers of the rollout under way.

client, async_client = create_http_clients()
model = ChatOpenAI(model="default", http_client=client, http_async_client=async_client)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from turnwise.rft.context import get_rollout_context
from turnwise.rft.headers import make_inference_headers


def create_http_client(**kwargs: Any) -> httpx.Client:
    """An `httpx.Client` for `ChatOpenAI(http_client=...)`; takes what that takes."""
    return httpx.Client(**_with_hook(kwargs, _add_headers))


def create_async_http_client(**kwargs: Any) -> httpx.AsyncClient:
    """An `httpx.AsyncClient` for `ChatOpenAI(http_async_client=...)`; takes what that takes."""
    return httpx.AsyncClient(**_with_hook(kwargs, _add_headers_async))


def create_http_clients(**kwargs: Any) -> tuple[httpx.Client, httpx.AsyncClient]:
    """Both, made with the same arguments."""
    return create_http_client(**kwargs), create_async_http_client(**kwargs)


def _add_headers(request: httpx.Request) -> None:
    if (metadata := get_rollout_context()) is not None:
        request.headers.update(make_inference_headers(metadata))


async def _add_headers_async(request: httpx.Request) -> None:
    _add_headers(request)


def _with_hook(kwargs: dict[str, Any], hook: Callable[[httpx.Request], Any]) -> dict[str, Any]:
    """The arguments with one more hook; the caller's own are left as they are."""
    hooks = dict(kwargs.get("event_hooks") or {})
    hooks["request"] = [*hooks.get("request", ()), hook]
    return {**kwargs, "event_hooks": hooks}
