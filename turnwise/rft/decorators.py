"""Runs an agent's entry point as a rollout: context, reward, errors."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from turnwise.rft.context import clear_rollout_context, set_rollout_context
from turnwise.rft.feedback import FeedbackError, RolloutFeedbackClient, is_over
from turnwise.rft.models import RolloutRequest, as_mapping

_log = logging.getLogger(__name__)


def _skipped(error: Exception) -> dict[str, str]:
    return {"status": "skipped", "error": str(error)}


def _failed(error: Exception) -> dict[str, str]:
    return {"status": "error", "error": str(error)}


def sagemaker_rft_handler(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a sync or async entry point whose first argument is the payload of `POST /rollout`.

        @rft_handler
        async def rollout(payload: dict) -> dict:
            answer = await my_agent(payload["prompt"])
            return {"reward": grade(answer), "metrics": {"words": len(answer.split())}}

    What it returns is reported: `reward` (a number, or one per turn) completes and rewards the
    rollout, a dict without one only completes it, `status` "error" fails it, "skipped" and anything
    that is no dict report nothing. `metrics` go along with the reward (an addition). An exception
    fails the rollout and is raised again, except one that says that the rollout is over already:
    then the result is {"status": "skipped", "error": its text}. A report that does not get through
    is logged, and the result still returned. A payload without metadata is no rollout: `func` runs,
    nothing is reported. Of an async entry point, reports are sent from a thread (an addition).
    """
    if inspect.iscoroutinefunction(func):
        return _async_handler(func)
    return _sync_handler(func)


rft_handler = sagemaker_rft_handler


def _async_handler(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    async def handler(*args: Any, **kwargs: Any) -> Any:
        client = _enter(args, kwargs)
        try:
            result = await func(*args, **kwargs)
        except Exception as error:
            if client and is_over(error):
                return _skipped(error)
            await asyncio.to_thread(_report, client, _failed(error))
            raise
        else:
            await asyncio.to_thread(_report, client, result)
            return result
        finally:
            clear_rollout_context()

    return handler


def _sync_handler(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def handler(*args: Any, **kwargs: Any) -> Any:
        client = _enter(args, kwargs)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if client and is_over(error):
                return _skipped(error)
            _report(client, _failed(error))
            raise
        else:
            _report(client, result)
            return result
        finally:
            clear_rollout_context()

    return handler


def _enter(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RolloutFeedbackClient | None:
    """Set the context from the payload; None if the payload is no rollout."""
    payload = next((v for v in (*args, *kwargs.values()) if _is_rollout(v)), None)
    if payload is None:
        _log.warning("no payload with metadata: running outside of a rollout, reporting nothing")
        return None
    values = as_mapping(payload)
    # Both spellings of the parameters, so that either works in `get_inference_params()`.
    params = {**(values.get("inferenceParams") or {}), **(values.get("inference_params") or {})}
    set_rollout_context(values["metadata"], params or None)
    return RolloutFeedbackClient(values["metadata"])


def _is_rollout(value: object) -> bool:
    if isinstance(value, RolloutRequest):
        return True
    return isinstance(value, Mapping) and isinstance(value.get("metadata"), Mapping)


def _report(client: RolloutFeedbackClient | None, result: object) -> None:
    """Report a result. A report that does not get through must not cost the agent its result."""
    if client is None or not isinstance(result, Mapping) or result.get("status") == "skipped":
        return
    try:
        if result.get("status") == "error":
            client.report_error(str(result.get("error", "")))
        elif result.get("reward") is None:
            client.complete_rollout()
        else:
            client.report_complete(result["reward"], result.get("metrics"))
    except (FeedbackError, TypeError, ValueError) as error:
        _log.warning("the rollout's result was not reported (non-fatal): %s", error)
