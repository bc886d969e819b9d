"""A base model with an adapter on it, as the learner uses it: batches in, logprobs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from turnwise import errors
from turnwise.domain.rollout import Floats, Tokens
from turnwise.domain.training import LearnerSpec, Sample
from turnwise.modeling.adapters import AdapterFiles, read_adapter
from turnwise.modeling.base import load_base
from turnwise.modeling.lora import attach_lora, load_lora, lora_files
from turnwise.rl.losses import token_logprobs
from turnwise.rl.packing import MicroBatch
from turnwise.rl.trie import Segment
from turnwise.training.attention import Layout, install


class TrainedModel:
    """The frozen base, its LoRA layers, and three ways to ask for logprobs.

    fp32 on the CPU; on CUDA a bf16 base with an fp32 adapter.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        """Load the base and attach a fresh adapter, or `spec.input_adapter`.

        Raises `InvalidInput` for a model or an adapter that cannot be trained.
        """
        self._lora = spec.lora
        self.module = load_base(spec.base_model, spec.device)
        self._decoder: torch.nn.Module = self.module.get_decoder()  # type: ignore[no-untyped-call]
        head = self.module.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._head = head
        self._check_head(spec.base_model)
        self.reads_tries = spec.share_prefixes and install(self.module)
        self._layers = attach_lora(self.module, spec.lora, spec.seed)
        if spec.input_adapter is not None:
            self.load(read_adapter(spec.input_adapter))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.module.device

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        named: dict[str, torch.nn.Parameter] = {}
        for path, layer in self._layers.items():
            named[f"{path}.lora_a"] = layer.lora_a
            named[f"{path}.lora_b"] = layer.lora_b
        return named

    # ── logprobs ──────────────────────────────────────────────────────────────────────────────

    def logprobs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Logprob (with gradient) and entropy of every trained token of a batch, [N] each."""
        hidden = self._hidden(self.tensor(batch.inputs), batch.segments).flatten(0, 1)
        return token_logprobs(
            hidden.index_select(0, self.tensor(batch.positions)),
            self._head.weight,
            self.tensor(batch.targets),
            self.tensor(batch.temperatures),
        )

    @torch.no_grad()
    def logprobs_now(self, batch: MicroBatch) -> Tensor:
        """Logprob of every trained token of a batch, without gradient, [N]."""
        return self.logprobs(batch)[0]

    def base_logprobs(self, batch: MicroBatch) -> Tensor:
        """The same with the adapter left out."""
        with self.holding(self.without_adapter()):
            return self.logprobs_now(batch)

    @torch.no_grad()
    def score(self, tokens: Tokens, temperature: float) -> Floats:
        """Logprob of each token given those before it, [T]; index 0 is 0.0."""
        scores = np.zeros(len(tokens), dtype=np.float32)
        if len(tokens) > 1:
            row = self.tensor(tokens).long()
            heat = torch.full((len(row) - 1,), temperature, device=self.device)
            hidden = self._hidden(row[None, :-1])[0]
            logprobs, _ = token_logprobs(hidden, self._head.weight, row[1:], heat)
            scores[1:] = logprobs.cpu().numpy()
        return scores

    @torch.no_grad()
    def plain_score(self, tokens: Tokens, temperatures: Floats) -> Floats:
        """As `score`, each token at its own temperature, and by the model's own head at once.

        The second opinion of the parity gate: it shares neither packing nor chunks with a step.
        """
        row = self.tensor(tokens).long()
        logits = self.module(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        heated = logits / self.tensor(temperatures)[1:, None]
        logprobs = heated.log_softmax(-1).gather(1, row[1:, None]).squeeze(1)
        return np.concatenate([[0.0], logprobs.cpu().numpy()]).astype(np.float32)

    def check(self, sample: Sample) -> None:
        """Raise `InvalidInput` for a sample that would train the wrong thing, or crash."""
        name = f"sample of rollout {sample.rollout_id}"
        size = self._head.weight.shape[0]
        outside = sample.tokens[(sample.tokens < 0) | (sample.tokens >= size)]
        if len(outside):
            reason = f"is outside the model's vocabulary of {size} tokens"
            raise errors.InvalidInput(name, int(outside[0]), reason)
        if sample.trained[:1].any():
            raise errors.InvalidInput(name, 0, "trains its first token, which nothing predicts")
        if (sample.temperatures[sample.trained] <= 0).any():
            reason = "trains a token sampled at temperature 0"
            raise errors.InvalidInput(name, 0.0, reason, remedy="mask greedy turns")

    # ── the adapter ───────────────────────────────────────────────────────────────────────────

    def files(self) -> AdapterFiles:
        """The adapter as it is now."""
        return lora_files(self._layers, self._lora)

    def load(self, files: AdapterFiles) -> None:
        """Put an adapter in place. Raises `InvalidInput` if its shape is not the job's."""
        load_lora(self._layers, self._lora, files)

    def values(self) -> dict[str, Tensor]:
        """A copy of the trained parameters."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @contextmanager
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values for the trained parameters, for a while."""
        present = self.values()
        try:
            self._assign(values)
            yield
        finally:
            self._assign(present)

    def without_adapter(self) -> dict[str, Tensor]:
        """Values for `holding` that leave the base alone."""
        return {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        """The array on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _hidden(self, inputs: Tensor, segments: Sequence[Segment] = ()) -> Tensor:
        # No attention mask: rows are padded on the right, where a causal model cannot look.
        options: dict[str, Any] = {}
        if segments:
            layout = Layout(segments, self.device)
            options = {"trie": layout, "position_ids": layout.depths}
        hidden = self._decoder(input_ids=inputs, use_cache=False, **options).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    @torch.no_grad()
    def _check_head(self, folder: str) -> None:
        """Raise `InvalidInput` if logits are more than hidden states times the head's weight."""
        probe = torch.arange(4, device=self.device)[None]
        logits = self.module(input_ids=probe, use_cache=False).logits
        ours = self._hidden(probe) @ self._head.weight.T
        if not torch.allclose(ours, logits, rtol=1e-2, atol=1e-3):
            raise errors.InvalidInput(
                "model",
                folder,
                "has an output head with more than a weight (a bias, scaling or a soft cap)",
                remedy="use a Llama, Qwen2 or Qwen3 style model",
            )
