"""Loading a base model, and naming it by its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from turnwise import errors

_WEIGHTS = (".safetensors", ".bin")


def dtype_of(device: str) -> torch.dtype:
    """The base's precision: fp32 on the CPU, where parity must be exact; bf16 on CUDA."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def load_base(folder: str | Path, device: str = "cpu") -> PreTrainedModel:
    """A causal language model from a local Hugging Face folder, frozen, in eval mode.

    Nothing is downloaded. Raises `InvalidInput` when the folder is missing or holds no model.
    """
    path = Path(folder)
    _check_folder(path)
    # Progress bars would draw in the server's log.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype_of(device), attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise errors.InvalidInput("model", str(folder), f"cannot be loaded: {error}") from error
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model


def base_sha256(folder: str | Path) -> str:
    """sha256, hex, over configuration and weights of a model folder; other files do not count."""
    path = Path(folder)
    _check_folder(path)
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name == "config.json" or file.suffix in _WEIGHTS:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        reason = "has no config.json" if path.is_dir() else "does not exist"
        raise errors.InvalidInput(
            "model", str(path), reason, remedy="give the folder of a Hugging Face model"
        )
