"""Messages <-> tokens, over the `renderers` package, for the chat families that it knows."""

from turnwise.rendering.family import load_renderer

__all__ = ["load_renderer"]
