"""A user's agent as AWS's guide has it: a Strands agent in a BedrockAgentCoreApp, with the SDK."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from bedrock_agentcore import BedrockAgentCoreApp
from sagemaker.train.rft import sagemaker_rft_handler
from sagemaker.train.rft.adapters.strands import wrap_model
from strands import Agent
from strands.models.openai import OpenAIModel
from strands.types.exceptions import MaxTokensReachedException

app = BedrockAgentCoreApp()


@app.entrypoint
@sagemaker_rft_handler
async def invoke_agent(payload: dict[str, Any]) -> dict[str, Any]:
    """One turn; the reward is the share of the reply's characters that are lower-case."""
    print("asked", payload["prompt"], flush=True)
    endpoint = payload["metadata"]["endpoint"]
    # One model per rollout: the SDK's wrapper writes the rollout's headers into it.
    model = OpenAIModel(
        client_args={"base_url": f"{endpoint}/v1", "api_key": "unused"}, model_id="default"
    )
    agent = Agent(model=wrap_model(model), callback_handler=None)
    with suppress(MaxTokensReachedException):  # a random model does not know when to end
        await agent.invoke_async(payload["instance"]["prompt"])
    said = "".join(part.get("text", "") for part in agent.messages[-1]["content"])
    return {
        "reward": sum(c.islower() for c in said) / max(1, len(said)),
        "metrics": {"characters": len(said)},
    }


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), host="127.0.0.1")
