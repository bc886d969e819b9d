"""Launchers: who starts the engine and learner processes, and ends them."""
