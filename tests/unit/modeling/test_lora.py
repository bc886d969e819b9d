from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn

from tests.tiny import save_tiny_model
from turnwise import errors
from turnwise.domain.training import LoraSpec
from turnwise.modeling.adapters import write_adapter
from turnwise.modeling.base import load_base
from turnwise.modeling.fingerprint import base_sha256
from turnwise.modeling.lora import LoraLinear, attach_lora, load_lora, lora_files

LORA = LoraSpec(rank=4, alpha=6.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "model")


def test_a_base_loads_frozen_in_full_precision(base: Path) -> None:
    model = load_base(base)
    assert model.dtype == torch.float32
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        load_base(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"model: '{tmp_path}/nowhere' does not exist; give the folder of a Hugging Face model"
    )
    with pytest.raises(errors.InvalidInput, match=r"has no config\.json"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(errors.InvalidInput, match="cannot be loaded"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(errors.InvalidInput, match="cannot be loaded"):
        load_base(tmp_path)


def test_a_base_is_known_by_configuration_and_weights(base: Path, tmp_path: Path) -> None:
    same = save_tiny_model(tmp_path / "same")
    (same / "tokenizer.json").write_text("{}")
    other = save_tiny_model(tmp_path / "other", seed=1)
    assert base_sha256(base) == base_sha256(same) != base_sha256(other)


def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(base: Path) -> None:
    tokens = torch.arange(12)[None]
    plain = load_base(base)
    expected = plain(input_ids=tokens).logits
    outside = torch.get_rng_state()
    layers = attach_lora(plain, LORA, seed=3)
    assert torch.equal(torch.get_rng_state(), outside)
    assert torch.allclose(plain(input_ids=tokens).logits, expected, atol=1e-6)
    assert len(layers) == 2 * 7
    again = attach_lora(load_base(base), LORA, seed=3)
    other = attach_lora(load_base(base), LORA, seed=4)
    assert lora_files(layers, LORA).id == lora_files(again, LORA).id
    assert lora_files(layers, LORA).id != lora_files(other, LORA).id


def test_an_unknown_target_is_refused_with_those_there_are(base: Path) -> None:
    with pytest.raises(errors.InvalidInput) as caught:
        attach_lora(load_base(base), LoraSpec(target_modules=("query",)), seed=0)
    assert str(caught.value) == (
        "lora.target_modules: 'query' is no linear of this model's layers; choose from "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_backward_is_the_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 5, bias=bias).requires_grad_(False)
    layer = LoraLinear(linear, 3, 1.5, torch.Generator().manual_seed(0)).double()
    nn.init.normal_(layer.lora_b)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    expected = linear(x) + 1.5 * (x @ layer.lora_a.T) @ layer.lora_b.T
    assert torch.allclose(layer(x), expected)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((layer(x) * weight).sum(), [layer.lora_a, layer.lora_b, x])
    theirs = torch.autograd.grad((expected * weight).sum(), [layer.lora_a, layer.lora_b, x])
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, reference)


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama"])
def test_peft_loads_the_folder_and_agrees(tmp_path: Path, architecture: str) -> None:
    base = save_tiny_model(tmp_path / "base", architecture, tie=architecture != "llama")
    model = load_base(base)
    layers = attach_lora(model, LORA, seed=0)
    for layer in layers.values():
        nn.init.normal_(layer.lora_b, std=0.1)
    write_adapter(tmp_path / "adapter", lora_files(layers, LORA), str(base))

    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 512, size=(1, 40)))
    with torch.no_grad():
        ours = model(input_ids=tokens).logits.log_softmax(-1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's own, about transformers
            theirs = peft.PeftModel.from_pretrained(load_base(base), tmp_path / "adapter")
        assert torch.allclose(ours, theirs(input_ids=tokens).logits.log_softmax(-1), atol=1e-5)
        with theirs.disable_adapter():
            bare = theirs(input_ids=tokens).logits.log_softmax(-1)
    assert (ours - bare).abs().mean() > 0.05


def test_an_adapter_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    layers = attach_lora(load_base(base), LORA, seed=0)
    files = lora_files(layers, LORA)
    load_lora(layers, LORA, files)
    with pytest.raises(errors.InvalidInput) as caught:
        load_lora(layers, LORA, replace(files, alpha=8.0))
    assert str(caught.value) == (
        "adapter: 'rank 4, alpha 8, down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj'"
        " is not the job's rank 4, alpha 6, down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj,"
        " v_proj; set lora to what the adapter has"
    )
    wide = attach_lora(load_base(save_tiny_model(tmp_path / "w", hidden_size=128)), LORA, seed=0)
    with pytest.raises(errors.InvalidInput, match="does not fit the base model at"):
        load_lora(layers, LORA, lora_files(wide, LORA))
    deep = attach_lora(load_base(save_tiny_model(tmp_path / "d", layers=3)), LORA, seed=0)
    with pytest.raises(errors.InvalidInput, match="is in only one of adapter and base model"):
        load_lora(layers, LORA, lora_files(deep, LORA))
