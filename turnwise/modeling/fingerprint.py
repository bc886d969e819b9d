"""What folders and files hold, as one hash, read without torch: adapters, bases, checkpoints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from turnwise import errors

_WEIGHTS = (".safetensors", ".bin")

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


def base_sha256(folder: str | Path) -> str:
    """sha256, hex, over configuration and weights of a model folder; other files do not count."""
    path = Path(folder)
    check_base_folder(path)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name == "config.json" or file.suffix in _WEIGHTS:
            digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def check_base_folder(path: Path) -> None:
    """Raise `InvalidInput` unless it is there and has a config.json."""
    if not (path / "config.json").is_file():
        reason = "has no config.json" if path.is_dir() else "does not exist"
        raise errors.InvalidInput(
            "model", str(path), reason, remedy="give the folder of a Hugging Face model"
        )


def file_sha256(path: str | Path) -> str:
    """sha256, hex, of a file's bytes. Raises `OSError`."""
    with Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """sha256, hex, over the relative path and content of every file below `folder`."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file_sha256(file)
        digest.update(f"{file.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def verify(folder: Path, sha256: str) -> None:
    """Raise `Corrupted` unless the folder is there and has this hash."""
    if not folder.is_dir():
        raise errors.Corrupted(f"checkpoint {folder} is missing")
    found = folder_sha256(folder)
    if found != sha256:
        raise errors.Corrupted(
            f"checkpoint {folder} has sha256 {found[:12]}..., recorded was {sha256[:12]}...; "
            "a file was changed or lost; resume from an older checkpoint"
        )


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
