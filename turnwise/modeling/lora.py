"""LoRA on the linears of a frozen base: y = x W^T + scaling (x A^T) B^T.

LoRA: https://arxiv.org/abs/2106.09685. The layer is our own because its backward is: PEFT's
composes the sum out of separate operations, each a pass over the activations, which costs 15 % of
a training step on a CPU. Names, files and arithmetic are PEFT's; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from turnwise import errors
from turnwise.domain.training import LoraSpec
from turnwise.modeling.adapters import AdapterFiles


class _LoraFunction(torch.autograd.Function):
    """The sum above and its gradients, accumulated in place. x [..., in], y [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a_low, b_low = a.to(x.dtype), b.to(x.dtype)
        inner = rows @ a_low.T
        out = nn.functional.linear(rows, weight, bias)
        out.addmm_(inner, b_low.T, alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        rows, inner, weight, a, b = ctx.saved_tensors
        outer = grad.reshape(-1, grad.shape[-1])
        grad_inner = (outer @ b.to(outer.dtype)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (outer @ weight).addmm_(grad_inner, a.to(outer.dtype))
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        grad_a = (grad_inner.T @ rows).to(a.dtype)
        grad_b = (outer.T @ inner).to(b.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


class LoraLinear(nn.Module):
    """A frozen linear with an adapter beside it, the adapter in fp32 whatever the base is in."""

    def __init__(
        self, base: nn.Linear, rank: int, scaling: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        # Kaiming-uniform with a = sqrt(5), as in the paper's code and PEFT. Drawn on the CPU, so
        # that a seed means the same adapter on every device.
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(base.out_features, rank)
        self.lora_a = nn.Parameter(a.to(base.weight.device))
        self.lora_b = nn.Parameter(b.to(base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out = _LoraFunction.apply(  # type: ignore[no-untyped-call]
            x, self.base.weight, self.base.bias, self.lora_a, self.lora_b, self.scaling
        )
        assert isinstance(out, Tensor)
        return out


Layers = dict[str, LoraLinear]  # by module path, such as "model.layers.0.self_attn.q_proj"


def attach_lora(model: PreTrainedModel, lora: LoraSpec, seed: int) -> Layers:
    """Replace the targeted linears by `LoraLinear`s in place; without effect until B is trained.

    The same seed gives the same A. Raises `InvalidInput` for a target the model does not have.
    """
    targets = _targets(model, lora)
    generator = torch.Generator().manual_seed(seed)
    layers: Layers = {}
    for path, linear in targets.items():
        layers[path] = LoraLinear(linear, lora.rank, lora.alpha / lora.rank, generator)
        model.set_submodule(path, layers[path])
    return layers


def lora_files(layers: Layers, lora: LoraSpec) -> AdapterFiles:
    """The adapter as it is now, copied to the CPU."""
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors[_name(path, "A")] = layer.lora_a.detach().cpu().clone()
        tensors[_name(path, "B")] = layer.lora_b.detach().cpu().clone()
    return AdapterFiles(
        rank=lora.rank,
        alpha=lora.alpha,
        target_modules=tuple(sorted(lora.target_modules)),
        tensors=tensors,
    )


def load_lora(layers: Layers, lora: LoraSpec, files: AdapterFiles) -> None:
    """Copy an adapter into the layers. Raises `InvalidInput` if its shape is not the job's."""
    _check_fits(layers, lora, files)
    with torch.no_grad():
        for path, (a, b) in files.pairs().items():
            layers[path].lora_a.copy_(a)
            layers[path].lora_b.copy_(b)


def _name(path: str, side: str) -> str:
    return f"base_model.model.{path}.lora_{side}.weight"


def _targets(model: PreTrainedModel, lora: LoraSpec) -> Mapping[str, nn.Linear]:
    # Linears of the decoder's layers only: the output head is projected apart, in chunks.
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    known = {path.rpartition(".")[2] for path in linears}
    for target in lora.target_modules:
        if target not in known:
            raise errors.InvalidInput(
                "lora.target_modules",
                target,
                "is no linear of this model's layers",
                remedy=f"choose from {', '.join(sorted(known))}",
            )
    wanted = set(lora.target_modules)
    return {p: linears[p] for p in sorted(linears) if p.rpartition(".")[2] in wanted}


def _check_fits(layers: Layers, lora: LoraSpec, files: AdapterFiles) -> None:
    ours = (lora.rank, lora.alpha, tuple(sorted(lora.target_modules)))
    theirs = (files.rank, files.alpha, files.target_modules)
    if ours != theirs:
        raise errors.InvalidInput(
            "adapter",
            f"rank {files.rank}, alpha {files.alpha:g}, {', '.join(files.target_modules)}",
            f"is not the job's rank {lora.rank}, alpha {lora.alpha:g}, {', '.join(ours[2])}",
            remedy="set lora to what the adapter has",
        )
    pairs = files.pairs()
    if set(pairs) != set(layers):
        odd = sorted(set(pairs) ^ set(layers))[0]
        raise errors.InvalidInput("adapter", odd, "is in only one of adapter and base model")
    for path, (a, b) in pairs.items():
        shapes = (tuple(a.shape), tuple(b.shape))
        if shapes != (tuple(layers[path].lora_a.shape), tuple(layers[path].lora_b.shape)):
            raise errors.InvalidInput("adapter", shapes, f"does not fit the base model at {path}")
