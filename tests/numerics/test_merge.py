"""Merged model files against peft's own merge, and against the base that they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.numerics.test_engine import save_adapter, with_adapter
from tests.tiny import save_tiny_model
from turnwise import errors
from turnwise.modeling.adapters import read_adapter
from turnwise.modeling.merge import merged_files, merged_rows


def save_merged(base: Path, adapter: Path, folder: Path) -> Path:
    """Write the merged folder; the folder. Each file has the size that it was announced with."""
    folder.mkdir()
    for file in merged_files(base, read_adapter(adapter)):
        content = b"".join(file.pieces())
        assert len(content) == file.size
        (folder / file.name).write_bytes(content)
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def save_sharded(folder: Path, dtype: torch.dtype) -> Path:
    """A tiny model in shards of 200 kB, and files that are no part of it."""
    save_tiny_model(folder / "whole", tie=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "whole", dtype=dtype)
    base = folder / "base"
    model.save_pretrained(base, max_shard_size="200KB")
    (base / "pytorch_model.bin").write_text("the same weights in another format")
    (base / "consolidated.safetensors").write_text("the same weights under other names")
    (base / "tokenizer.json").write_text("{}")
    (base / ".cache").mkdir()
    return base


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama"])
def test_the_merged_model_is_peft_s(architecture: str, tmp_path: Path):
    base = save_tiny_model(tmp_path / "base", architecture, tie=architecture != "llama")
    save_adapter(tmp_path / "adapter", base, rank=4, seed=1)
    merged = save_merged(base, tmp_path / "adapter", tmp_path / "merged")

    ours = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    untouched = AutoModelForCausalLM.from_pretrained(base).state_dict()
    theirs = with_adapter(base, tmp_path / "adapter").merge_and_unload().state_dict()

    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
        is_changed = not torch.equal(ours[name], untouched[name])
        assert is_changed == ("_proj.weight" in name), name


def test_every_rounding_is_the_last_one_and_what_is_not_targeted_keeps_its_bits(tmp_path: Path):
    base = save_sharded(tmp_path, torch.bfloat16)
    save_adapter(tmp_path / "adapter", base, rank=4, seed=2, targets=["q_proj"])
    merged = save_merged(base, tmp_path / "adapter", tmp_path / "merged")

    before = weights_of_index(base)
    after = weights(merged)
    pairs = read_adapter(tmp_path / "adapter").pairs()
    for name, tensor in before.items():
        expected = tensor
        if (module := name.removesuffix(".weight")) in pairs:
            a, b = pairs[module]
            expected = (tensor.double() + 2.0 * b.double() @ a.double()).to(torch.bfloat16)
            assert not torch.equal(after[name], tensor)
        assert after[name].dtype is torch.bfloat16
        torch.testing.assert_close(after[name], expected, rtol=0.008, atol=0)
        if module not in pairs:
            assert torch.equal(after[name], tensor)
    assert {file.name for file in merged.iterdir()} == {
        file.name for file in base.iterdir() if file.is_file()
    } - {"pytorch_model.bin", "consolidated.safetensors"}
    assert len(list(merged.glob("*.safetensors"))) == 2


def weights_of_index(base: Path) -> dict[str, Tensor]:
    index = json.loads((base / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    return {name: tensor for file in files for name, tensor in load_file(base / file).items()}


def test_rows_merge_one_at_a_time_as_all_at_once():
    generator = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(size, generator=generator) for size in ((6, 8), (2, 8), (6, 2)))
    rows = [merged_rows(w[i : i + 1], a, b[i : i + 1], 0.5) for i in range(6)]
    torch.testing.assert_close(torch.cat(rows), w + 0.5 * b @ a)
    assert merged_rows(w.half(), a, b, 0.5).dtype is torch.float16


def test_a_base_that_the_adapter_is_not_for_is_refused(tmp_path: Path):
    base = save_tiny_model(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, rank=4, seed=1)
    files = read_adapter(tmp_path / "adapter")
    wider = save_tiny_model(tmp_path / "wider", hidden_size=128)
    shallow = save_tiny_model(tmp_path / "shallow", layers=1)
    with pytest.raises(errors.InvalidInput, match=r"adapter: \(64, 128\) is not the shape of"):
        merged_files(wider, files)
    with pytest.raises(errors.InvalidInput, match=r"'model.layers.1.* is no weight of the base"):
        merged_files(shallow, files)


def test_a_base_that_cannot_be_added_to_is_refused(tmp_path: Path):
    base = save_tiny_model(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, rank=4, seed=1)
    files = read_adapter(tmp_path / "adapter")
    weights_file = base / "model.safetensors"
    content = weights_file.read_bytes()
    weights_file.write_bytes(content.replace(b'"dtype":"F32"', b'"dtype":"I32"'))
    with pytest.raises(errors.InvalidInput, match=r"'I32' is the type of .* not quantized, or"):
        merged_files(base, files)
    weights_file.write_bytes(content[:100])
    with pytest.raises(errors.InvalidInput, match=r"model\.safetensors' cannot be read"):
        merged_files(base, files)
    weights_file.unlink()
    with pytest.raises(errors.InvalidInput, match=r"has no model\.safetensors; save it as"):
        merged_files(base, files)
