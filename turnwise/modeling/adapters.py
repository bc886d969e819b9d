"""The PEFT adapter folder: `adapter_config.json` beside `adapter_model.safetensors`.

This is the interchange between learner, engine, vLLM and anyone's own `peft` script, so it is
written without extras (no model card, no hub look-ups) and read strictly: a variant of LoRA that
the engine would apply wrongly (rsLoRA, DoRA, per-module ranks ...) is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from turnwise import errors

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# Settings that change the arithmetic, with the only value that plain LoRA has.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_rslora": (None, False),
    "use_dora": (None, False),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
}


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
        sides: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            match = _TENSOR_NAME.fullmatch(name)
            if match is None:
                raise errors.InvalidInput("adapter", name, "is not the name of a LoRA weight")
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        for module, pair in sides.items():
            _check_pair(module, pair, self.rank)
        return {module: (pair["A"], pair["B"]) for module, pair in sorted(sides.items())}


def read_adapter(path: str | Path) -> AdapterFiles:
    """Read a PEFT folder onto the CPU.

    Raises `InvalidInput` when it is not a plain LoRA adapter, or is cut short.
    """
    folder = Path(path)
    config = _read_config(folder)
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


def _check_pair(module: str, pair: Mapping[str, Tensor], rank: int) -> None:
    if set(pair) != {"A", "B"}:
        raise errors.InvalidInput("adapter", module, "has only one of lora_A and lora_B")
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        shapes = (tuple(a.shape), tuple(b.shape))
        raise errors.InvalidInput("adapter", shapes, f"does not fit rank {rank} at {module}")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise errors.InvalidInput(
            "adapter", str(folder), f"has no {CONFIG_FILE}", remedy="give a PEFT adapter folder"
        ) from None
    except ValueError as error:
        raise errors.InvalidInput(
            "adapter", str(folder / CONFIG_FILE), f"is not JSON: {error}"
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise errors.InvalidInput("adapter", str(folder), "is not a LoRA adapter")
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise errors.InvalidInput(
                f"adapter {key}", config[key], "is not supported", remedy="use plain LoRA"
            )
    _check_shape(config)
    return config


def _check_shape(config: Mapping[str, Any]) -> None:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    targets = config.get("target_modules")
    if not isinstance(rank, int) or rank < 1:
        raise errors.InvalidInput("adapter r", rank, "must be a whole number of at least 1")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise errors.InvalidInput("adapter lora_alpha", alpha, "must be a number")
    if not isinstance(targets, list) or not targets:
        raise errors.InvalidInput("adapter target_modules", targets, "must be a list of names")
