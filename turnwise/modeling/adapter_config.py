"""What can be said of a PEFT folder without torch: its configuration, and its tensors' shapes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

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


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA adapter. Raises `InvalidInput` for any other."""
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


def check_adapter(folder: Path, base: Path) -> None:
    """Raise `InvalidInput` unless the folder is a plain LoRA adapter that fits the base's weights.

    Reads the files' heads, no weight. A base without safetensors files is not looked at.
    """
    config = read_config(folder)
    if not (folder / TENSORS_FILE).is_file():
        raise errors.InvalidInput(
            "adapter", str(folder), f"has no {TENSORS_FILE}", remedy="give a PEFT adapter folder"
        )
    shapes = _shapes("adapter", folder / TENSORS_FILE)
    if not shapes:
        raise errors.InvalidInput("adapter", str(folder / TENSORS_FILE), "holds no tensors")
    weights: dict[str, tuple[int, ...]] = {}
    for shard in sorted(base.glob("*.safetensors")):
        weights |= _shapes("model", shard)
    for module, (a, b) in tensor_pairs(shapes, config["r"]).items():
        fits = (shapes[b][0], shapes[a][1])
        if weights and weights.get(f"{module}.weight") != fits:
            has = weights.get(f"{module}.weight", "no such weight")
            raise errors.InvalidInput(
                "adapter",
                module,
                f"is for a weight of shape {fits}; the base model {base} has {has}",
                remedy="name the base model that the adapter was trained on",
            )


def _shapes(field: str, file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file, by name."""
    try:
        with safe_open(file, framework="numpy") as opened:
            names = list(opened.keys())
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise errors.InvalidInput(field, str(file), f"cannot be read: {error}") from error


def tensor_pairs(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, tuple[str, str]]:
    """The names of (A, B) per module path of the base, in the order of the modules.

    Raises `InvalidInput` for a tensor that is no LoRA weight, lacks its partner, or has another
    rank.
    """
    sides: dict[str, dict[str, str]] = {}
    for name in shapes:
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            raise errors.InvalidInput("adapter", name, "is not the name of a LoRA weight")
        sides.setdefault(match["module"], {})[match["side"]] = name
    for module, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise errors.InvalidInput("adapter", module, "has only one of lora_A and lora_B")
        a, b = shapes[pair["A"]], shapes[pair["B"]]
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise errors.InvalidInput("adapter", (a, b), f"does not fit rank {rank} at {module}")
    return {module: (pair["A"], pair["B"]) for module, pair in sorted(sides.items())}


def _check_shape(config: Mapping[str, Any]) -> None:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    targets = config.get("target_modules")
    if not isinstance(rank, int) or rank < 1:
        raise errors.InvalidInput("adapter r", rank, "must be a whole number of at least 1")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise errors.InvalidInput("adapter lora_alpha", alpha, "must be a number")
    if not isinstance(targets, list) or not targets:
        raise errors.InvalidInput("adapter target_modules", targets, "must be a list of names")
