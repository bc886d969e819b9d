"""An adapter folder's id, read from its files alone: for processes without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from turnwise import errors

#: The file format's names of number types -> those that an adapter's id is made of.
_DTYPES = {
    "F64": "torch.float64",
    "F32": "torch.float32",
    "F16": "torch.float16",
    "BF16": "torch.bfloat16",
}


def fingerprint(path: str | Path) -> str:
    """sha256, hex, over configuration and tensors of a PEFT folder: `AdapterFiles.id` of it.

    Raises `InvalidInput` for a folder that holds no readable adapter.
    """
    folder = Path(path)
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return _digest(config, (folder / "adapter_model.safetensors").read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InvalidInput(
            "adapter",
            str(folder),
            f"cannot be read ({type(error).__name__}: {error})",
            remedy="give a PEFT adapter folder",
        ) from error


def _digest(config: dict[str, Any], file: bytes) -> str:
    """The file is a length (8 bytes, little-endian), a JSON head, and the tensors' bytes."""
    start = 8 + int.from_bytes(file[:8], "little")
    head = json.loads(file[8:start])
    digest = hashlib.sha256()
    shape = {
        "alpha": float(config["lora_alpha"]),
        "rank": config["r"],
        "target_modules": sorted(config["target_modules"]),
    }
    digest.update(_canonical(shape))
    for name in sorted(head.keys() - {"__metadata__"}):
        tensor = head[name]
        first, last = tensor["data_offsets"]
        named = {"name": name, "dtype": _DTYPES[tensor["dtype"]], "shape": tensor["shape"]}
        digest.update(_canonical(named))
        digest.update(memoryview(file)[start + first : start + last])
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
