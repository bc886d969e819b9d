"""Pipelines: definitions, their executions as state machines, and what drives them."""
