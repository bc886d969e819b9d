from __future__ import annotations

from pathlib import Path

import pytest
import torch

from turnwise import errors
from turnwise.modeling.adapters import AdapterFiles, write_adapter
from turnwise.modeling.fingerprint import fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_id_that_the_adapter_has_in_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"lora_A": (2, 8), "lora_B": (4, 2)}
    files = AdapterFiles(
        rank=2,
        alpha=4.0,
        target_modules=("q_proj", "k_proj"),
        tensors={
            f"base_model.model.layers.0.{module}.{side}.weight": torch.randn(
                shape, generator=generator
            ).to(dtype)
            for module in ("q_proj", "k_proj")
            for side, shape in shapes.items()
        },
    )
    write_adapter(tmp_path, files, "base")
    assert fingerprint(tmp_path) == files.id


def test_a_folder_that_is_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(errors.InvalidInput, match="give a PEFT adapter folder") as raised:
        fingerprint(tmp_path)
    assert str(raised.value).startswith(f"adapter: {str(tmp_path)!r} cannot be read (")
