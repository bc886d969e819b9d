"""Frameworks' models made to call the rollout's own: `strands`, `langchain`."""
