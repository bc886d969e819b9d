"""A base model's folder with an adapter merged in, file by file, never a whole model in memory.

LoRA's update is of rank r, so W + alpha/r B A is again a weight of W's shape: a merged file has
the base file's layout, and only the bytes of the targeted weights differ. So nothing else needs
to be understood: tied embeddings, biases, heads and whatever a model has besides are copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turnwise import errors
from turnwise.modeling.adapters import AdapterFiles

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"

#: Bytes that are read and written at a time.
_PIECE_BYTES = 4 << 20
#: Suffixes of weights, in this format and in others.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")
#: The file format's names of number types that a delta can be added to.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def merged_rows(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """W + scaling B A in W's precision, summed in fp32 (fp64 for a W of fp64).

    W is [n, in], any n rows of the weight; A [r, in]; B [n, r], the same rows.
    """
    exact = torch.float64 if weight.dtype is torch.float64 else torch.float32
    merged = torch.addmm(weight.to(exact), b.to(exact), a.to(exact), alpha=scaling)
    return merged.to(weight.dtype)


@dataclass(frozen=True, slots=True)
class _Delta:
    """What is added to one weight."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scaling: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A tensor of a file: where its bytes lie, counted from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class MergedFile:
    """A file of the merged folder: the base's, with `deltas` added to the weights they name."""

    def __init__(self, path: Path, deltas: Mapping[str, _Delta]) -> None:
        self._path = path
        self._deltas = deltas
        self.name = path.name
        self.size = path.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        """Its content, `size` bytes in all."""
        with self._path.open("rb") as file:
            if self._deltas:
                start, tensors = _read_head(self._path)
                yield from _copied(file, start)
                for tensor in sorted(tensors, key=lambda stored: stored.begin):
                    delta = self._deltas.get(tensor.name)
                    if delta is None:
                        yield from _copied(file, tensor.end - tensor.begin)
                    else:
                        yield from _added(file, tensor, delta)
            yield from _copied(file, None)


def merged_files(base: Path, adapter: AdapterFiles) -> list[MergedFile]:
    """The files of the merged folder: the base's, but for weights that are not its own.

    Raises `InvalidInput` for an adapter that does not fit, and for a base whose weights are not
    safetensors of floating point.
    """
    shards = _shards(base)
    deltas = {
        f"{module}.weight": _Delta(a, b, adapter.scaling)
        for module, (a, b) in adapter.pairs().items()
    }
    stored = {shard: _read_head(shard)[1] for shard in shards}
    _check_fits(deltas, [tensor for tensors in stored.values() for tensor in tensors])
    others = [
        file
        for file in base.iterdir()
        if file.is_file()
        and file.suffix not in _WEIGHTS
        and not file.name.startswith(".")
        # An index of weights in another format would name files that are not here.
        and (not file.name.endswith(".index.json") or file.name == INDEX_FILE)
    ]
    # The small ones first: a reader that gives up early has at least seen the configuration.
    return [MergedFile(file, {}) for file in sorted(others)] + [
        MergedFile(shard, {t.name: deltas[t.name] for t in stored[shard] if t.name in deltas})
        for shard in shards
    ]


def _shards(base: Path) -> list[Path]:
    if (base / INDEX_FILE).is_file():
        index = json.loads((base / INDEX_FILE).read_text(encoding="utf-8"))
        return [base / name for name in sorted(set(index["weight_map"].values()))]
    if not (base / WEIGHTS_FILE).is_file():
        raise errors.InvalidInput(
            "base_model",
            str(base),
            f"has no {WEIGHTS_FILE}",
            remedy="save it as safetensors (save_pretrained does), or export the adapter",
        )
    return [base / WEIGHTS_FILE]


def _read_head(file: Path) -> tuple[int, list[_Stored]]:
    """Where the data begins, and the tensors: 8 bytes of length, a JSON head, the data."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            head: dict[str, Any] = json.loads(opened.read(length))
        tensors = [
            _Stored(
                name=name,
                dtype=tensor["dtype"],
                shape=tuple(tensor["shape"]),
                begin=tensor["data_offsets"][0],
                end=tensor["data_offsets"][1],
            )
            for name, tensor in head.items()
            if name != "__metadata__"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InvalidInput(
            "base_model", str(file), f"cannot be read ({type(error).__name__}: {error})"
        ) from error
    return 8 + length, tensors


def _check_fits(deltas: Mapping[str, _Delta], stored: Sequence[_Stored]) -> None:
    known = {tensor.name: tensor for tensor in stored}
    for name, delta in deltas.items():
        tensor = known.get(name)
        if tensor is None:
            raise errors.InvalidInput("adapter", name, "is no weight of the base model's files")
        shape = (delta.b.shape[0], delta.a.shape[1])
        if tensor.shape != shape:
            raise errors.InvalidInput(
                "adapter", shape, f"is not the shape of {name}, {tensor.shape}"
            )
        if tensor.dtype not in _DTYPES:
            raise errors.InvalidInput(
                "base_model",
                tensor.dtype,
                f"is the type of {name}, to which nothing can be added",
                remedy="give a base that is not quantized, or export the adapter",
            )


def _copied(file: Any, count: int | None) -> Iterator[bytes]:
    """The next `count` bytes, or all that follow."""
    while count is None or count > 0:
        piece = file.read(_PIECE_BYTES if count is None else min(count, _PIECE_BYTES))
        if not piece:
            return
        yield piece
        count = None if count is None else count - len(piece)


def _added(file: Any, tensor: _Stored, delta: _Delta) -> Iterator[bytes]:
    """The merged bytes of the tensor that the file stands at, some rows at a time."""
    rows, columns = tensor.shape
    dtype = _DTYPES[tensor.dtype]
    row_bytes = columns * dtype.itemsize
    step = max(1, _PIECE_BYTES // row_bytes)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        read = bytearray(file.read((last - first) * row_bytes))
        weight = torch.frombuffer(read, dtype=dtype).view(last - first, columns)
        merged = merged_rows(weight, delta.a, delta.b[first:last], delta.scaling)
        yield merged.contiguous().view(torch.uint8).numpy().tobytes()
