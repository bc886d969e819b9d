"""The agent's side of Turnwise: a drop-in for `sagemaker.train.rft`. No torch, no AWS.

    from turnwise.rft import RolloutFeedbackClient, RolloutRequest

    @app.post("/rollout")
    async def rollout(request: RolloutRequest) -> dict:
        model = AsyncOpenAI(base_url=request.metadata.endpoint + "/v1", api_key="unused")
        reward = await my_agent(request.instance, model)
        RolloutFeedbackClient(request.metadata).report_complete(reward)

Names, arguments and behaviour are those of https://sagemaker.readthedocs.io (sagemaker.train.rft);
additions are named as such in the docstrings.
"""

from turnwise.rft.context import (
    clear_rollout_context,
    get_inference_params,
    get_rollout_context,
    set_rollout_context,
)
from turnwise.rft.decorators import rft_handler, sagemaker_rft_handler
from turnwise.rft.feedback import FeedbackError, RolloutFeedbackClient
from turnwise.rft.headers import get_inference_headers, make_inference_headers
from turnwise.rft.models import InferenceParams, RolloutMetadata, RolloutRequest

__all__ = [
    "FeedbackError",
    "InferenceParams",
    "RolloutFeedbackClient",
    "RolloutMetadata",
    "RolloutRequest",
    "clear_rollout_context",
    "get_inference_headers",
    "get_inference_params",
    "get_rollout_context",
    "make_inference_headers",
    "rft_handler",
    "sagemaker_rft_handler",
    "set_rollout_context",
]
