"""The PEFT adapter folder: `adapter_config.json` beside `adapter_model.safetensors`.

This is the interchange between learner, engine, vLLM and anyone's own `peft` script, so it is
written without extras (no model card, no hub look-ups) and read strictly: a variant of LoRA that
the engine would apply wrongly (rsLoRA, DoRA, per-module ranks ...) is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from turnwise import errors
from turnwise.modeling.adapter_config import (
    CONFIG_FILE,
    TENSORS_FILE,
    read_config,
    tensor_pairs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """A LoRA adapter in memory: y = x W^T + scaling (x A^T) B^T for every targeted linear.

    `tensors` is keyed as in the file: "base_model.model.<module>.lora_A.weight" is A [rank, in],
    "...lora_B.weight" is B [out, rank]. `target_modules` is sorted.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def scaling(self) -> float:
        """What the low-rank product is multiplied by."""
        return self.alpha / self.rank

    @property
    def id(self) -> str:
        """sha256, hex, over configuration and tensors; file order and metadata do not count."""
        digest = hashlib.sha256()
        config = {
            "alpha": float(self.alpha),
            "rank": self.rank,
            "target_modules": sorted(self.target_modules),
        }
        digest.update(_canonical(config))
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            head = {"name": name, "dtype": str(tensor.dtype), "shape": list(tensor.shape)}
            digest.update(_canonical(head))
            digest.update(tensor.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) per module path of the base, such as "model.layers.0.self_attn.q_proj".

        Raises `InvalidInput` for a tensor that is no LoRA weight, lacks its partner, or has
        another rank.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return {
            module: (self.tensors[a], self.tensors[b])
            for module, (a, b) in tensor_pairs(shapes, self.rank).items()
        }


def read_adapter(path: str | Path) -> AdapterFiles:
    """Read a PEFT folder onto the CPU.

    Raises `InvalidInput` when it is not a plain LoRA adapter, or is cut short.
    """
    folder = Path(path)
    config = read_config(folder)
    try:
        tensors = load_file(folder / TENSORS_FILE)
    except FileNotFoundError:
        raise errors.InvalidInput(
            "adapter", str(folder), f"has no {TENSORS_FILE}", remedy="give a PEFT adapter folder"
        ) from None
    except SafetensorError as error:
        raise errors.InvalidInput(
            "adapter", str(folder / TENSORS_FILE), f"cannot be read: {error}"
        ) from error
    files = AdapterFiles(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        target_modules=tuple(sorted(config["target_modules"])),
        tensors=tensors,
    )
    files.pairs()
    return files


def write_adapter(path: str | Path, files: AdapterFiles, base_model: str) -> None:
    """Write a PEFT folder that `peft.PeftModel.from_pretrained` loads. Parents are created.

    Raises `OSError` as the file system gives it (a full disk among them).
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": files.rank,
        "lora_alpha": files.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(files.target_modules),
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    tensors = {name: t.detach().cpu().contiguous() for name, t in files.tensors.items()}
    # Through Python's own write: safetensors' would hide which OS error it was.
    (folder / TENSORS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))


def adapter_id(path: str | Path) -> str:
    """The id of an adapter folder: `AdapterFiles.id` of what it holds."""
    return read_adapter(path).id


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"
