"""Zstandard frames that hold their content as it is. Pure.

eval-protocol unpacks what it is sent with zstandard; nothing asks that it be small. So a frame of
raw blocks serves, and the server needs no compressor (RFC 8878, 3.1.1).
"""

from __future__ import annotations

_MAGIC = bytes.fromhex("28b52ffd")
#: One segment, its size in the next four bytes, no checksum.
_DESCRIPTOR = b"\xa0"
_MAX_BLOCK = 128 * 1024


def frame(content: bytes) -> bytes:
    """One frame of up to 4 GiB.

    >>> frame(b"abc").hex(" ", 1)
    '28 b5 2f fd a0 03 00 00 00 19 00 00 61 62 63'
    """
    starts = range(0, max(1, len(content)), _MAX_BLOCK)
    blocks = [content[start : start + _MAX_BLOCK] for start in starts]
    heads = [_block_head(len(block), is_last=False) for block in blocks[:-1]]
    heads.append(_block_head(len(blocks[-1]), is_last=True))
    body = b"".join(part for pair in zip(heads, blocks, strict=True) for part in pair)
    return _MAGIC + _DESCRIPTOR + len(content).to_bytes(4, "little") + body


def _block_head(size: int, *, is_last: bool) -> bytes:
    """A bit for the last one, two for the type (0: raw), the rest for the size."""
    return (size << 3 | is_last).to_bytes(3, "little")
