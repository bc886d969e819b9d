"""Fireworks, as its public clients speak to it."""
