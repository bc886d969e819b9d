"""Opens the archive of a registered model, its files verified first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from turnwise.exporting.tar import folder_members, tar_pieces, tar_size
from turnwise.ports import Archive, MergeSpec, ModelPackage


class FolderArchive:
    """`ports.Archive` of a folder's files."""

    def __init__(self, folder: Path) -> None:
        self._members = folder_members(folder)

    async def size(self) -> int:
        """See `ports.Archive`."""
        return tar_size(self._members)

    async def pieces(self) -> AsyncIterator[bytes]:
        """See `ports.Archive`."""
        pieces = tar_pieces(self._members)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def close(self) -> None:
        """Nothing is held."""


class Archives:
    """`verified` gives a package's PEFT folder, `base` that of its base model, or they raise.

    `merge` starts a merge.
    """

    def __init__(
        self,
        verified: Callable[[ModelPackage], Path],
        base: Callable[[ModelPackage], Path],
        merge: Callable[[MergeSpec], Awaitable[Archive]],
    ) -> None:
        self._verified = verified
        self._base = base
        self._merge = merge

    async def open(self, package: ModelPackage, *, merged: bool) -> Archive:
        """The package as a PEFT folder, or as a model folder that needs no adapter.

        Raises `NotFound` and `Corrupted` for its files and its base's; what a merge finds wrong,
        its `size` says.
        """
        folder = await asyncio.to_thread(self._verified, package)
        if not merged:
            return FolderArchive(folder)
        base = await asyncio.to_thread(self._base, package)
        return await self._merge(MergeSpec(base_model=str(base), adapter=str(folder)))
