"""The embedded engine, synchronous: requests in, tokens out `step()` by `step()`. No thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from turnwise import errors
from turnwise.domain.rollout import Floats, Tokens
from turnwise.modeling.adapters import read_adapter
from turnwise.modeling.base import load_base
from turnwise.ports import Chunk, EngineSpec, SampleRequest, SamplerInfo, SamplerStats
from turnwise.sampling.architecture import read_architecture, take_apart
from turnwise.sampling.choose import Choice, choose
from turnwise.sampling.layout import BLOCK, Layout, lay_out, lay_out_sequence
from turnwise.sampling.model import Adapter, Decoder
from turnwise.sampling.random import as_seed
from turnwise.sampling.requests import check_request, check_scored, max_new_tokens
from turnwise.sampling.scheduler import Entry, Plan, Scheduler
from turnwise.sampling.slots import SlotTable

#: Prompt tokens that a step computes beside decoding: enough to fill the matrix products, few
#: enough that the requests being decoded hardly notice.
_PREFILL_TOKENS = 512
#: Slots beyond those that run, for prefixes of rollouts whose agent is busy elsewhere.
_CACHE_SLOTS_SHARE = 0.5
#: A streamed request gets its tokens in batches, at most this often.
_STREAM_INTERVAL_S = 0.02
#: Tokens scored in one forward: their logits over a whole vocabulary are held at once.
_SCORE_TOKENS = 128
_BASE_KEY = 0


@dataclass(frozen=True, slots=True)
class Output:
    """Something for the one who waits for a request."""

    entry: Entry
    chunk: Chunk


@dataclass(slots=True)
class _Adapter:
    key: int
    weights: Adapter
    requests: int = 0
    retired: bool = False


class _Rows:
    """Sampling parameters per slot."""

    def __init__(self, num_slots: int) -> None:
        self.temperature = np.ones(num_slots, np.float32)
        self.top_p = np.ones(num_slots, np.float32)
        self.top_k = np.zeros(num_slots, np.int64)
        self.seeds = np.zeros(num_slots, np.uint64)
        self.end = np.zeros(num_slots, np.int64)  # prompt + completion may grow to this

    def set(self, entry: Entry) -> None:
        slot, params = entry.slot, entry.request.sampling
        self.temperature[slot] = params.temperature
        self.top_p[slot] = params.top_p
        self.top_k[slot] = params.top_k
        self.seeds[slot] = as_seed(entry.request.seed)
        self.end[slot] = entry.prompt_length + entry.max_new

    def choice(self, slots: np.ndarray, counts: np.ndarray) -> Choice:
        return Choice(
            temperature=self.temperature[slots],
            top_p=self.top_p[slots],
            top_k=self.top_k[slots],
            seeds=self.seeds[slots],
            counts=counts.astype(np.uint64),
        )


class Engine:
    """One base model, many adapters. One thread calls `step`; any thread may call the rest.

    Raises `InvalidInput` for a model that it cannot run.
    """

    def __init__(self, spec: EngineSpec, *, now: Callable[[], float] = time.monotonic) -> None:
        if spec.deterministic and spec.device == "cpu" and spec.threads != 1:
            raise errors.InvalidInput(
                "threads",
                spec.threads,
                "splits sums in ways that depend on the batch",
                remedy="use 1 thread in deterministic mode",
            )
        torch.set_num_threads(spec.threads)
        base = load_base(spec.base_model, spec.device)
        self._architecture = read_architecture(base.config)
        self._fixed = spec.deterministic
        self._model = Decoder(
            take_apart(base, self._architecture), self._architecture, fixed=spec.deterministic
        )
        self.info = SamplerInfo(
            model=spec.base_model,
            vocab_size=self._architecture.vocab_size,
            max_length=min(spec.max_length, self._architecture.max_positions),
            max_slots=spec.max_slots,
            dtype=str(self._model.dtype).removeprefix("torch."),
            deterministic=spec.deterministic,
            sampled_logprobs=True,
        )
        num_slots = spec.max_slots + max(4, int(spec.max_slots * _CACHE_SLOTS_SHARE))
        self._table = SlotTable(num_slots, self.info.max_length, exact_only=self._fixed)
        self._logprobs = np.zeros((num_slots, self.info.max_length), np.float32)
        self._rows = _Rows(num_slots)
        self._cache = self._model.new_cache(num_slots)
        self._scheduler = Scheduler(
            self._table,
            max_running=spec.max_slots,
            max_waiting=spec.max_queue,
            prefill_tokens=_PREFILL_TOKENS,
            border=BLOCK if self._fixed else 1,
        )
        self._adapters: dict[str, _Adapter] = {}
        self._next_key = _BASE_KEY + 1
        self._now = now
        self._lock = threading.Lock()  # over scheduler, table, adapters; never held in a forward
        self._sampled = self._prefilled = self._cached = 0

    # ── adapters ──────────────────────────────────────────────────────────────────────────────

    def load(self, adapter_id: str, path: str) -> None:
        """As `Sampler.load`."""
        with self._lock:
            known = self._adapters.get(adapter_id)
            if known is not None:
                known.retired = False
                return
        files = read_adapter(path)
        if files.id != adapter_id:
            raise errors.Corrupted(f"the adapter at {path} is {files.id}, not {adapter_id}")
        weights = self._model.adapter(files)
        with self._lock:
            if adapter_id not in self._adapters:
                self._adapters[adapter_id] = _Adapter(self._next_key, weights)
                self._next_key += 1

    def retire(self, adapter_id: str) -> None:
        """As `Sampler.retire`."""
        with self._lock:
            adapter = self._adapters.get(adapter_id)
            if adapter is not None:
                adapter.retired = True
                self._free_if_done(adapter_id, adapter)

    # ── requests ──────────────────────────────────────────────────────────────────────────────

    def new_entry(self, request: SampleRequest) -> Entry:
        """A request, checked; nothing is queued. Raises `InvalidInput` and `NotFound`."""
        check_request(request, self.info)
        adapter = self._adapter(request.adapter_id)
        return Entry(
            request=request,
            key=_BASE_KEY if adapter is None else adapter.key,
            max_new=max_new_tokens(request, self.info),
            stop_ids=frozenset(request.stop_ids),
        )

    def submit(self, entry: Entry) -> None:
        """Queue a request. Raises `LimitExceeded`, and `NotFound` if its adapter has gone."""
        with self._lock:
            adapter = self._adapter(entry.request.adapter_id)
            self._scheduler.submit(entry)
            if adapter is not None:
                adapter.requests += 1

    def abort(self, entry: Entry) -> bool:
        """End a request early, from outside. Others are left alone.

        True if it had not started, so that there is no more to tell; else the next step tells
        what was sampled. One that has ended already gives no more output.
        """
        with self._lock:
            was_waiting = self._scheduler.abort(entry)
            if was_waiting:
                self._end(entry)
            return was_waiting

    def abort_all(self) -> list[Output]:
        """End every request; what each has still to be told."""
        with self._lock:
            entries = self._scheduler.unfinished()
            for entry in entries:
                self._end(entry)
            return [self._output(entry, "abort") for entry in entries]

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return self._scheduler.num_waiting == 0 and self._scheduler.num_running == 0

    def stats(self) -> SamplerStats:
        """A snapshot."""
        with self._lock:
            return SamplerStats(
                running=self._scheduler.num_running,
                waiting=self._scheduler.num_waiting,
                sampled_tokens=self._sampled,
                prefilled_tokens=self._prefilled,
                cached_tokens=self._cached,
                adapters=len(self._adapters),
            )

    # ── the work ──────────────────────────────────────────────────────────────────────────────

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """One forward for every running request; what there is to tell."""
        with self._lock:
            aborted = self._drop_aborted()
            plan = self._plan()
            if plan.is_empty:
                return aborted
            place = self._table.place.copy()
            exchanges = self._table.bring_forward(self._scheduler.running_slots())
            layout = lay_out(plan, self._table, fixed=self._fixed)
            adapters = {adapter.key: adapter.weights for adapter in self._adapters.values()}
        for copy in plan.copies:
            self._cache.copy(int(place[copy.source]), int(place[copy.target]), copy.length)
        for exchange in exchanges:
            self._cache.exchange(exchange)
        logits = self._model.forward(layout, self._cache, adapters)
        tokens, logprobs = self._choose(logits, layout)
        with self._lock:
            self._scheduler.advance(plan)
            return aborted + self._commit(layout.sample_slots, tokens, logprobs)

    @torch.inference_mode()
    def score(self, tokens: Tokens, adapter_id: str | None, temperature: float = 1.0) -> Floats:
        """As `Sampler.score`; between two steps, on the thread that steps."""
        check_scored(tokens, self.info)
        with self._lock:
            adapter = self._adapter(adapter_id)
        adapters = {} if adapter is None else {adapter.key: adapter.weights}
        key = _BASE_KEY if adapter is None else adapter.key
        scores = np.zeros(len(tokens), np.float32)
        cache = self._model.new_cache(1)
        for start in range(0, len(tokens) - 1, _SCORE_TOKENS):
            part = tokens[start : min(start + _SCORE_TOKENS, len(tokens) - 1)]
            layout = lay_out_sequence(part, start, key, fixed=self._fixed)
            logits = self._model.forward(layout, cache, adapters)[: len(part)].float()
            following = torch.as_tensor(tokens[start + 1 : start + 1 + len(part)])
            following = following.long().to(logits.device)
            logprobs = (logits / (temperature or 1.0)).log_softmax(-1)
            chosen = logprobs.gather(1, following[:, None])[:, 0]
            scores[start + 1 : start + 1 + len(part)] = chosen.cpu().numpy()
        return scores

    def _drop_aborted(self) -> list[Output]:
        dropped = self._scheduler.drop_aborted()
        for entry in dropped:
            self._end(entry)
        return [self._output(entry, "abort") for entry in dropped]

    def _plan(self) -> Plan:
        plan = self._scheduler.plan()
        for entry in plan.started:
            self._rows.set(entry)
            self._cached += entry.cached
        self._prefilled += sum(span.end - span.start for span in plan.prefill)
        return plan

    def _choose(self, logits: torch.Tensor, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        count = len(layout.samples)
        if count == 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        slots = layout.sample_slots
        # Rows of deterministic mode's last block that stand for nothing repeat the first slot.
        slots = np.concatenate([slots, np.full(len(logits) - count, slots[0])])
        counts = self._sample_counts(layout, len(logits))
        tokens, logprobs = choose(logits, self._rows.choice(slots, counts))
        return tokens[:count].cpu().numpy(), logprobs[:count].cpu().numpy()

    def _sample_counts(self, layout: Layout, length: int) -> np.ndarray:
        sampled = layout.positions[layout.samples] + 1 - self._table.prompt[layout.sample_slots]
        return np.concatenate([sampled, np.zeros(length - len(sampled), np.int64)])

    def _commit(self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray) -> list[Output]:
        at = self._table.kv[slots]
        self._table.tokens[slots, at] = tokens
        self._logprobs[slots, at] = logprobs
        self._sampled += len(slots)
        full = (at + 1 >= self._rows.end[slots]).tolist()
        now = self._now()
        outputs = []
        running = self._scheduler.decoding
        for slot, token, is_full in zip(slots.tolist(), tokens.tolist(), full, strict=True):
            entry = running[slot]
            if token in entry.stop_ids:
                outputs.append(self._finish(entry, "stop"))
            elif is_full:
                outputs.append(self._finish(entry, "length"))
            elif entry.request.stream and now - entry.delivered_at >= _STREAM_INTERVAL_S:
                entry.delivered_at = now
                outputs.append(self._output(entry, None))
        return outputs

    def _finish(self, entry: Entry, reason: str) -> Output:
        output = self._output(entry, reason)
        self._scheduler.finish(entry)
        self._end(entry)
        return output

    def _output(self, entry: Entry, reason: str | None) -> Output:
        """What was sampled since the last output."""
        slot, prompt = entry.slot, entry.prompt_length
        start = prompt + entry.delivered
        end = max(start, int(self._table.kv[slot]) + 1) if slot >= 0 else start
        entry.delivered += end - start
        chunk = Chunk(
            tokens=self._table.tokens[slot, start:end].copy(),
            logprobs=self._logprobs[slot, start:end].copy(),
            finish_reason=reason,
            cached_tokens=entry.cached,
        )
        return Output(entry, chunk)

    def _adapter(self, adapter_id: str | None) -> _Adapter | None:
        if adapter_id is None:
            return None
        adapter = self._adapters.get(adapter_id)
        if adapter is None or adapter.retired:
            raise errors.NotFound("adapter", adapter_id, remedy="load it first")
        return adapter

    def _end(self, entry: Entry) -> None:
        """A request has left; free its adapter if it was the last on a retired one."""
        adapter_id = entry.request.adapter_id
        if adapter_id is not None:
            adapter = self._adapters[adapter_id]
            adapter.requests -= 1
            self._free_if_done(adapter_id, adapter)

    def _free_if_done(self, adapter_id: str, adapter: _Adapter) -> None:
        if adapter.retired and adapter.requests == 0:
            del self._adapters[adapter_id]
            self._table.forget(adapter.key)
