from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from turnwise import errors
from turnwise.modeling.adapters import AdapterFiles, adapter_id, read_adapter, write_adapter

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def adapter(seed: int = 0, rank: int = 2) -> AdapterFiles:
    generator = torch.Generator().manual_seed(seed)
    return AdapterFiles(
        rank=rank,
        alpha=4.0,
        target_modules=("q_proj",),
        tensors={
            f"{Q}.lora_A.weight": torch.randn(rank, 8, generator=generator),
            f"{Q}.lora_B.weight": torch.randn(6, rank, generator=generator),
        },
    )


def written(folder: Path, **config: object) -> Path:
    write_adapter(folder, adapter(), "/models/tiny")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_an_adapter_reads_back_as_it_was_written(tmp_path: Path) -> None:
    files = adapter()
    write_adapter(tmp_path / "a", files, "/models/tiny")
    again = read_adapter(tmp_path / "a")
    assert (again.rank, again.alpha, again.target_modules) == (2, 4.0, ("q_proj",))
    assert {k: v.tolist() for k, v in again.tensors.items()} == {
        k: v.tolist() for k, v in files.tensors.items()
    }
    assert again.scaling == 2.0
    a, b = again.pairs()["model.layers.0.self_attn.q_proj"]
    assert (a.shape, b.shape) == ((2, 8), (6, 2))


def test_the_id_depends_on_content_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", base_model_name_or_path="elsewhere", lora_dropout=0.1)
    tensors = load_file(folder / "adapter_model.safetensors")
    backwards = dict(sorted(tensors.items(), reverse=True))
    save_file(backwards, folder / "adapter_model.safetensors", metadata={"made": "today"})
    assert adapter_id(folder) == adapter().id
    assert len(adapter().id) == 64


def test_the_id_tells_every_difference_apart() -> None:
    first = adapter()
    halves = {name: tensor.to(torch.float16) for name, tensor in first.tensors.items()}
    flat = {name: tensor.reshape(-1, 1) for name, tensor in first.tensors.items()}
    others = [
        adapter(seed=1),
        replace(first, alpha=8.0),
        replace(first, rank=4),
        replace(first, target_modules=("k_proj", "q_proj")),
        replace(first, tensors=halves),
        replace(first, tensors=flat),
        replace(first, tensors={f"x.{name}": t for name, t in first.tensors.items()}),
    ]
    assert len({other.id for other in [first, *others]}) == 8


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_rslora": True}, "adapter use_rslora: True is not supported; use plain LoRA"),
        ({"rank_pattern": {"q_proj": 4}}, "adapter rank_pattern: {'q_proj': 4} is not supported"),
        ({"r": 0}, "adapter r: 0 must be a whole number of at least 1"),
        ({"lora_alpha": "16"}, "adapter lora_alpha: '16' must be a number"),
        ({"target_modules": "all-linear"}, "target_modules: 'all-linear' must be a list of names"),
        ({"peft_type": "IA3"}, "is not a LoRA adapter"),
        ({"r": 4}, "does not fit rank 4 at model.layers.0.self_attn.q_proj"),
    ],
)
def test_an_adapter_that_would_be_applied_wrongly_is_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        read_adapter(written(tmp_path / "a", **config))
    assert message in str(caught.value)


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match=r"has no adapter_config\.json; give a PEFT"):
        read_adapter(tmp_path)
    folder = written(tmp_path / "a")
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    with pytest.raises(errors.InvalidInput, match="cannot be read"):
        read_adapter(folder)
    tensors.unlink()
    with pytest.raises(errors.InvalidInput, match=r"has no adapter_model\.safetensors"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(errors.InvalidInput, match="is not JSON"):
        read_adapter(folder)


def test_half_a_pair_is_refused() -> None:
    files = adapter()
    only_a = {name: t for name, t in files.tensors.items() if "lora_A" in name}
    with pytest.raises(errors.InvalidInput, match="has only one of lora_A and lora_B"):
        replace(files, tensors=only_a).pairs()
    with pytest.raises(errors.InvalidInput, match="is not the name of a LoRA weight"):
        replace(files, tensors={"lm_head.weight": torch.zeros(1)}).pairs()
