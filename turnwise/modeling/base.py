"""Loading a base model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from turnwise import errors
from turnwise.modeling.fingerprint import check_base_folder


def dtype_of(device: str) -> torch.dtype:
    """The base's precision: fp32 on the CPU, where parity must be exact; bf16 on CUDA."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def load_base(folder: str | Path, device: str = "cpu") -> PreTrainedModel:
    """A causal language model from a local Hugging Face folder, frozen, in eval mode.

    Nothing is downloaded. Raises `InvalidInput` when the folder is missing or holds no model.
    """
    path = Path(folder)
    check_base_folder(path)
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
