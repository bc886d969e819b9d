"""Turnwise's own JSON API under /api/v1, which `turnwise.client` and the CLI speak."""
