"""The merging process: a tar of the merged model folder, piece by piece, as it is asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

from turnwise.channel import Method, serve
from turnwise.exporting.tar import tar_pieces, tar_size
from turnwise.modeling.adapters import read_adapter
from turnwise.modeling.merge import merged_files
from turnwise.ports import MergeSpec


async def serve_merge(at: str | socket.socket, spec: MergeSpec) -> None:
    """Answer the one parent until it leaves. What cannot be merged is an error of every call."""

    def prepare() -> tuple[int, Iterator[bytes]]:
        members = merged_files(Path(spec.base_model), read_adapter(spec.adapter))
        return tar_size(members), tar_pieces(members)

    preparing = asyncio.ensure_future(asyncio.to_thread(prepare))
    # Read the outcome here, so that a failure nobody asked about is not reported as forgotten.
    preparing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def size(_: None) -> int:
        return (await asyncio.shield(preparing))[0]

    async def following(_: None) -> bytes:
        pieces = (await asyncio.shield(preparing))[1]
        return await asyncio.to_thread(next, pieces, b"")

    methods = {"size": Method(type(None), size), "next": Method(type(None), following)}
    await serve(at, methods)
