"""Turnwise: multi-turn reinforcement learning for the model behind an agent."""

__version__ = "0.1.0"
