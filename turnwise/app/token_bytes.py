"""What tokens stand for, for pages that show them one by one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from turnwise import errors
from turnwise.domain.job import Job
from turnwise.rendering.tokenizer import Tokenizer

#: Tokenizers kept; one is some tens of MB and takes about a second to read.
KEPT = 4


class TokenBytes:
    """Tokenizers of jobs' base models, the last used ones kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Tokenizer] = OrderedDict()
        self._loading = asyncio.Lock()  # so that one that several ask for is read once

    async def __call__(self, job: Job, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token. Raises `NotFound` without the model's folder, `InvalidInput`."""
        tokenizer = await self._tokenizer(job.spec.model)
        return await asyncio.to_thread(lambda: [tokenizer.token_bytes(id) for id in tokens])

    async def _tokenizer(self, folder: str) -> Tokenizer:
        async with self._loading:
            if folder not in self._kept:
                self._kept[folder] = await asyncio.to_thread(_load, Path(folder))
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(folder)
            return self._kept[folder]


def _load(folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise errors.NotFound("base model", str(folder), remedy="put the folder back")
    return Tokenizer.load(folder)
