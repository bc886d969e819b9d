"""The SDK: a client of the native API, without torch or a server."""

from turnwise.client.client import Client, connect

__all__ = ["Client", "connect"]
