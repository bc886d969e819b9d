"""A merged archive over a channel, as the server and the merging process share it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.numerics.test_engine import save_adapter
from tests.tiny import save_tiny_model
from turnwise import errors
from turnwise.channel import Connection
from turnwise.exporting.handle import RemoteArchive
from turnwise.exporting.process import serve_merge
from turnwise.modeling.adapters import read_adapter
from turnwise.modeling.merge import merged_files
from turnwise.ports import MergeSpec


@contextlib.asynccontextmanager
async def merging(base: Path, adapter: Path) -> AsyncIterator[RemoteArchive]:
    """The archive; its other end has left when the block has ended."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    spec = MergeSpec(base_model=str(base), adapter=str(adapter))
    serving = asyncio.create_task(serve_merge(theirs, spec))
    archive = RemoteArchive(await Connection.over(ours))
    try:
        yield archive
    finally:
        await archive.close()
        async with asyncio.timeout(30):
            await serving


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    save_adapter(folder, base, rank=4, seed=1)
    return folder


async def test_the_archive_is_as_long_as_announced_and_holds_the_merged_files(base, adapter):
    async with merging(base, adapter) as archive:
        size = await archive.size()
        content = b"".join([piece async for piece in archive.pieces()])
    assert len(content) == size
    expected = {f.name: b"".join(f.pieces()) for f in merged_files(base, read_adapter(adapter))}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = {name: tar.extractfile(name) for name in tar.getnames()}
        assert {name: file.read() for name, file in files.items() if file} == expected


async def test_what_cannot_be_merged_is_said_before_a_byte(base, adapter, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    async with merging(tmp_path, adapter) as archive:
        with pytest.raises(errors.InvalidInput) as refused:
            await archive.size()
    assert str(refused.value) == (
        f"base_model: '{tmp_path}' has no model.safetensors; save it as safetensors "
        "(save_pretrained does), or export the adapter"
    )


async def test_a_reader_that_leaves_ends_the_merge(base, adapter):
    async with merging(base, adapter) as archive:
        await archive.size()
        assert await anext(archive.pieces())
