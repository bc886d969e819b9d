"""One job's learner on torch: LoRA parameters, optimizer and random state; a step at a time."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file, save
from torch import Tensor

import turnwise
from turnwise import errors
from turnwise.domain.rollout import Floats, Tokens
from turnwise.domain.training import (
    ADAPTER_FOLDER,
    META_FILE,
    NOTHING_TRAINED,
    STATE_FILE,
    Adapter,
    Checkpoint,
    DataPosition,
    LearnerSpec,
    LossSpec,
    MiniBatch,
    Mismatch,
    StepRequest,
    StepResult,
)
from turnwise.modeling.adapters import read_adapter, write_adapter
from turnwise.modeling.fingerprint import base_sha256, verify
from turnwise.rl.losses import token_losses
from turnwise.rl.packing import MicroBatch, micro_batches
from turnwise.training import parity
from turnwise.training.checkpoint import write_atomically
from turnwise.training.figures import Forward, Tally
from turnwise.training.model import TrainedModel


class TorchLearner:
    """`ports.Learner`, synchronously.

    Ratios use the sampler's logprobs, so a step costs one forward and one backward per token, and
    its first forward is also the parity check. A loss with `tis_cap` costs one more forward for
    the mini-batches after the first, one with `kl_coef` one more for all.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        """Raises `InvalidInput` for a base model or an input adapter that cannot be trained."""
        self._spec = spec
        self.model = TrainedModel(spec)
        self._base_sha256 = base_sha256(spec.base_model)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters.values(),
            lr=spec.optimizer.learning_rate,
            betas=(spec.optimizer.beta1, spec.optimizer.beta2),
            eps=spec.optimizer.eps,
            weight_decay=spec.optimizer.weight_decay,
        )
        # The adapter before the last step, by which the gate recognises a sampler left behind.
        self._previous: dict[str, Tensor] | None = None
        torch.manual_seed(spec.seed)

    # ── a step ────────────────────────────────────────────────────────────────────────────────

    def step(self, request: StepRequest) -> StepResult:
        """One optimizer update per mini-batch that trains something.

        Raises `ParityExceeded` or `InvalidInput` with nothing updated, and `TurnwiseError` for a
        loss or gradient that is no finite number, before the update it would have made.
        """
        started = time.perf_counter()
        for mini_batch in request.mini_batches:
            for weighted in mini_batch.samples:
                self.model.check(weighted.sample)
        before = self.model.values()
        starts = self._starts(request)
        tally = Tally()
        for number in range(len(request.mini_batches)):
            self._update(request, number, starts[number], tally)
        self._previous = before
        return StepResult(
            step=request.step,
            updates=len(tally.losses),
            trained_tokens=tally.trained_tokens,
            metrics=tally.metrics(request.loss, request.learning_rate),
            mismatch=tally.mismatch,
            seconds=time.perf_counter() - started,
        )

    def accumulate(
        self, mini_batch: MiniBatch, loss: LossSpec, starts: Sequence[Tensor | None] | None = None
    ) -> list[Forward]:
        """Forward and backward over a mini-batch; its gradient is then in `model.parameters`.

        `starts` are, per micro-batch, the learner's logprobs when the step began (see
        `losses.token_losses`); None: as now. An empty list when it trains no token.
        """
        self._optimizer.zero_grad()
        batches = self._micro_batches(mini_batch)
        return [
            self._backward(batch, loss, start)
            for batch, start in zip(batches, starts or (None,) * len(batches), strict=True)
        ]

    def _micro_batches(self, mini_batch: MiniBatch) -> list[MicroBatch]:
        budget, share = self._spec.tokens_per_micro_batch, self.model.reads_tries
        return micro_batches(mini_batch.samples, budget, share=share)

    def _starts(self, request: StepRequest) -> list[list[Tensor] | None]:
        """Per mini-batch, this moment's logprobs where the loss will need them and not have them.

        The first mini-batch's own forward is of this moment.
        """
        found: list[list[Tensor] | None] = [None] * len(request.mini_batches)
        if request.loss.tis_cap:
            for number, each in enumerate(request.mini_batches[1:], 1):
                batches = self._micro_batches(each)
                found[number] = [self.model.logprobs_now(batch) for batch in batches]
        return found

    def _update(
        self, request: StepRequest, number: int, starts: list[Tensor] | None, tally: Tally
    ) -> None:
        mini_batch = request.mini_batches[number]
        forwards = self.accumulate(mini_batch, request.loss, starts)
        if not forwards:
            return
        if not tally.losses:
            tally.mismatch = self._gate(request, mini_batch, forwards)
        loss, norm = sum(f.loss for f in forwards), self._clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._optimizer.zero_grad()
            raise errors.TurnwiseError(
                f"step {request.step}, mini-batch {number}: loss {loss:g}, gradient norm {norm:g}; "
                "this update was not made; lower the learning rate and resume from the last "
                "checkpoint"
            )
        for group in self._optimizer.param_groups:
            group["lr"] = request.learning_rate
        self._optimizer.step()
        tally.add(forwards, loss, norm)

    def _backward(self, batch: MicroBatch, loss: LossSpec, start: Tensor | None) -> Forward:
        # Before the forward with gradient, whose parameters must not change until its backward.
        base = self.model.base_logprobs(batch) if loss.kl_coef else None
        logprobs, entropies = self.model.logprobs(batch)
        each = token_losses(
            loss,
            logprobs,
            self.model.tensor(batch.logprobs),
            self.model.tensor(batch.advantages),
            self.model.tensor(batch.turns),
            start=start,
            base=base,
        )
        total = (self.model.tensor(batch.weights) * each).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return Forward(
            batch=batch,
            loss=float(total.detach()),
            logprobs=logprobs.detach().cpu().numpy(),
            entropies=entropies.cpu().numpy(),
            start=None if start is None else start.cpu().numpy(),
            base=None if base is None else base.cpu().numpy(),
        )

    def _clip(self) -> float:
        """Scale the gradient down to the norm allowed; its norm before."""
        parameters = list(self.model.parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._spec.optimizer.grad_clip_norm > 0:
            limit = self._spec.optimizer.grad_clip_norm
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)

    # ── the parity gate ───────────────────────────────────────────────────────────────────────

    def _gate(
        self, request: StepRequest, mini_batch: MiniBatch, forwards: Sequence[Forward]
    ) -> tuple[Mismatch, ...]:
        """The mismatch per age over a mini-batch not yet learned from; raises over the limit."""
        found = parity.mismatches(
            request.step,
            np.concatenate([f.logprobs for f in forwards]),
            np.concatenate([f.batch.logprobs for f in forwards]),
            np.concatenate([f.batch.policy_steps for f in forwards]),
        )
        current = next((m for m in found if m.age == 0), None)
        limit = request.parity_limit
        if current is not None and limit is not None and parity.exceeds(current, limit):
            self._optimizer.zero_grad()
            raise errors.ParityExceeded(
                f"step {request.step}: sampler and learner give {current.tokens} tokens of the "
                f"current adapter different logprobs: mean |difference| {current.mean:.3g} nats "
                f"(limit {limit:g}), max {current.max:.3g}. On the worst row "
                f"{self._verdict(request.step, mini_batch, forwards, limit)}. Nothing was updated"
            )
        return found

    def _verdict(
        self, step: int, mini_batch: MiniBatch, forwards: Sequence[Forward], limit: float
    ) -> str:
        row, index, learner = _worst_row(step, forwards)
        sample = mini_batch.samples[row].sample
        plain = self.model.plain_score(sample.tokens, sample.temperatures)
        unheated = self.model.plain_score(sample.tokens, np.ones_like(sample.temperatures))
        with self.model.holding(self.model.without_adapter()):
            base = self.model.plain_score(sample.tokens, sample.temperatures)
        suppositions = {
            "it did not apply the adapter: its values are the base model's": base[index],
            "it did not apply the temperature: its values are those at 1": unheated[index],
            "mask and logprobs are off by one: its values are the token before's": plain[index - 1],
            "mask and logprobs are off by one: its values are the token after's": plain[
                (index + 1) % len(plain)
            ],
        }
        if self._previous is not None:
            with self.model.holding(self._previous):
                stale = self.model.plain_score(sample.tokens, sample.temperatures)
            suppositions["it serves a stale adapter: its values are the last step's"] = stale[index]
        return parity.verdict(sample.logprobs[index], learner, plain[index], suppositions, limit)

    # ── state ─────────────────────────────────────────────────────────────────────────────────

    def score(self, tokens: Tokens, temperature: float = 1.0) -> Floats:
        """Logprob of each token given those before it, [T]; index 0 is 0.0."""
        if temperature <= 0:
            raise errors.InvalidInput("temperature", temperature, "must be greater than 0")
        return self.model.score(tokens, temperature)

    def save(self, step: int, folder: str, position: DataPosition = NOTHING_TRAINED) -> Checkpoint:
        """Write a checkpoint folder, whole or not at all.

        Raises `StorageFull`; an older checkpoint at `folder` is then as it was.
        """
        path = Path(folder)
        files = self.model.files()
        meta = json.dumps(self._meta(step, position), indent=2, sort_keys=True) + "\n"

        def write(temporary: Path) -> None:
            write_adapter(temporary / ADAPTER_FOLDER, files, self._spec.base_model)
            (temporary / STATE_FILE).write_bytes(save(self._state()))
            (temporary / META_FILE).write_text(meta, encoding="utf-8")

        sha256 = write_atomically(path, write)
        adapter = Adapter(adapter_id=files.id, path=str(path / ADAPTER_FOLDER))
        return Checkpoint(step=step, path=str(path), sha256=sha256, adapter=adapter)

    def restore(self, checkpoint: Checkpoint) -> DataPosition:
        """Continue from a checkpoint, bit for bit on the CPU; where its data stood.

        Raises `Corrupted` if the folder is not as it was written, and `InvalidInput` if it belongs
        to another base model or another LoRA shape.
        """
        folder = Path(checkpoint.path)
        verify(folder, checkpoint.sha256)
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        if meta["base_sha256"] != self._base_sha256:
            raise errors.InvalidInput(
                "checkpoint",
                checkpoint.path,
                f"was trained on another base model ({meta['base_model']})",
                remedy="resume with that model",
            )
        self.model.load(read_adapter(folder / ADAPTER_FOLDER))
        self._load_state(load_file(folder / STATE_FILE))
        self._previous = None
        kept = meta.get("position", {"next": 0, "ahead": []})  # not in folders of version 0.1
        return DataPosition(next=kept["next"], ahead=tuple(kept["ahead"]))

    def _meta(self, step: int, position: DataPosition) -> dict[str, object]:
        return {
            "step": step,
            "policy_step": step + 1,
            "position": asdict(position),
            "base_model": self._spec.base_model,
            "base_sha256": self._base_sha256,
            "lora": asdict(self._spec.lora),
            "versions": {
                "turnwise": turnwise.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _state(self) -> dict[str, Tensor]:
        """Optimizer state ("<parameter>/exp_avg" ...) and random states ("rng/cpu" ...)."""
        state = {"rng/cpu": torch.get_rng_state()}
        if self.model.device.type == "cuda":
            state["rng/cuda"] = torch.cuda.get_rng_state(self.model.device)
        for name, parameter in self.model.parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"{name}/{key}"] = value.detach().cpu().contiguous()
        return state

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        self._optimizer.state.clear()
        for name, parameter in self.model.parameters.items():
            prefix = f"{name}/"
            kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            # AdamW counts its steps on the CPU; the moments live beside the parameter.
            if kept:
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in kept.items()
                }
        torch.set_rng_state(state["rng/cpu"])
        if "rng/cuda" in state and self.model.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng/cuda"], self.model.device)


def _worst_row(step: int, forwards: Sequence[Forward]) -> tuple[int, npt.NDArray[np.int64], Floats]:
    """The sample whose current tokens differ most: (sample, token indices, learner's logprobs)."""
    rows = np.concatenate([f.batch.sample for f in forwards])
    index = np.concatenate([f.batch.index for f in forwards])
    learner = np.concatenate([f.logprobs for f in forwards])
    sampler = np.concatenate([f.batch.logprobs for f in forwards])
    current = np.concatenate([f.batch.policy_steps for f in forwards]) == step
    # What is no number counts as the largest difference of all.
    apart = np.nan_to_num(np.abs(learner - sampler), nan=np.inf)
    means = {int(row): apart[current & (rows == row)].mean() for row in np.unique(rows[current])}
    worst = max(means, key=lambda row: means[row])
    chosen = current & (rows == worst)
    return worst, index[chosen], learner[chosen]
