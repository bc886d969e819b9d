"""An archive that another process makes. Imports no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator

from turnwise.channel import Connection


class RemoteArchive:
    """`ports.Archive` over the process that `serve_merge` runs in.

    A piece is made when it is asked for: a slow reader holds up the merge, not memory.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def size(self) -> int:
        """See `ports.Archive`."""
        return await self._connection.call("size", None, int)

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `ports.Archive`."""
        while piece := await self._connection.call("next", None, bytes):
            yield piece

    async def close(self) -> None:
        """End the process."""
        await self._connection.close()
