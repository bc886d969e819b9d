"""OpenAI's chat completions, spoken by every agent framework."""
