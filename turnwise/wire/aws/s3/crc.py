"""CRC32C and CRC64NVME, which the standard library lacks. Pure.

A CRC is linear over GF(2): a message's lanes are taken through the table side by side, a byte of
each at a time, and then joined pairwise, each left one moved on by the length of the right one.
64 MB take about a second.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

_CASTAGNOLI = 0x82F63B78, 32
_NVME = 0x9A6C9329AC4BC9B5, 64

Words = npt.NDArray[np.uint64]


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli).

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    return _crc(data, *_CASTAGNOLI)


def crc64nvme(data: bytes) -> int:
    """CRC-64/NVME.

    >>> hex(crc64nvme(b"123456789"))
    '0xae8b14860a799888'
    """
    return _crc(data, *_NVME)


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    ones = (1 << bits) - 1
    lanes = 1 << max(0, (len(data) // 512).bit_length() - 1)  # at least 512 bytes each
    length = len(data) // lanes
    block = np.frombuffer(data, np.uint8, lanes * length).reshape(lanes, length)
    states = np.zeros(lanes, np.uint64)
    states[0] = ones
    table = _table(polynomial)
    for column in np.ascontiguousarray(block.T):
        states = _next(states, column, table)
    while len(states) > 1:
        states = _moved(states[0::2], length, polynomial, bits) ^ states[1::2]
        length *= 2
    state = int(states[0])
    for byte in data[lanes * (len(data) // lanes) :]:
        state = int(table[(state ^ byte) & 0xFF]) ^ (state >> 8)
    return state ^ ones


def _next(states: Words, column: npt.NDArray[np.uint8], table: Words) -> Words:
    """Each lane's state after its next byte."""
    after: Words = table[(states ^ column) & np.uint64(0xFF)] ^ (states >> np.uint64(8))
    return after


@functools.cache
def _table(polynomial: int) -> Words:
    states = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        states = (states >> np.uint64(1)) ^ (states & np.uint64(1)) * np.uint64(polynomial)
    return states


def _moved(states: Words, length: int, polynomial: int, bits: int) -> Words:
    """The states after that many zero bytes, which is a linear map: the sum of its columns."""
    columns = _zeros(length, polynomial, bits)
    moved = np.zeros_like(states)
    for bit in range(bits):
        moved ^= ((states >> np.uint64(bit)) & np.uint64(1)) * columns[bit]
    return moved


@functools.lru_cache(maxsize=1024)
def _zeros(length: int, polynomial: int, bits: int) -> Words:
    """What each bit of a state becomes after so many zero bytes, by squaring."""
    if length == 1:
        table = _table(polynomial)
        units = np.uint64(1) << np.arange(bits, dtype=np.uint64)
        return _next(units, np.zeros(bits, np.uint8), table)
    half = _zeros(length // 2, polynomial, bits)
    columns = _moved(half, length // 2, polynomial, bits)
    return _moved(columns, 1, polynomial, bits) if length % 2 else columns
