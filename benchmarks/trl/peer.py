"""GRPOTrainer with the demo's task as its environment. Runs in .venv-trl, started by compare.py.

    python -m benchmarks.trl.peer BASE DATA SEED OUT SECONDS BATCHES

Writes an adapter to OUT/<batch> after every `JUDGE_EVERY` batches, with the clock stopped, and
says one line of JSON per batch: seconds since training began and CPU seconds of this process. Ends
after SECONDS, or after BATCHES.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from benchmarks.trl import task as shared
from examples.aircraft_inspection.data import Task, load, user_prompt
from examples.aircraft_inspection.inspector import InspectionAgent
from examples.aircraft_inspection.task import opening_messages
from examples.aircraft_inspection.tools import Tools

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = shared.PROMPTS_PER_BATCH * shared.GROUP_SIZE
MICRO_BATCH = 32
#: Tokens of a whole episode, the tools' answers included: TRL has no limit per turn.
EPISODE_TOKENS = 512


def tokenizer_of(base: Path, task: Task) -> PreTrainedTokenizerBase:
    """The base's tokenizer, whose template shows the tools just as our service shows them.

    TRL would describe them by its own reading of the methods below: other text, which this base
    has never seen.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    tools = json.dumps(list(task.tools), ensure_ascii=False)
    tokenizer.chat_template = "{%- set tools = " + tools + " -%}\n" + tokenizer.chat_template
    tokenizer.response_template = qwen3_template  # or TRL cannot read our template's replies
    return tokenizer


def environment_of(task: Task) -> type:
    """The task's tools as the methods of one episode's environment."""
    tools = Tools(task)
    methods = {spec["function"]["name"]: _method(spec["function"], tools) for spec in task.tools}
    return type("Inspection", (), {**methods, "reset": lambda self, **row: None})


def _method(function: Mapping[str, Any], tools: Tools) -> Callable[..., str]:
    name, arguments = function["name"], function["parameters"]["properties"]

    def call(self: object, **given: str) -> str:
        return json.dumps(tools.call(name, given))  # TRL would show a dict as Python does

    call.__name__ = name
    lines = "".join(f"    {argument}: text\n" for argument in arguments)
    call.__doc__ = f"{function['description']}\n\nArgs:\n{lines}\nReturns:\n    JSON."
    call.__annotations__ = dict.fromkeys(arguments, str) | {"return": str}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", kind),
            *(inspect.Parameter(argument, kind, annotation=str) for argument in arguments),
        ],
        return_annotation=str,
    )
    return call


def reward_of(task: Task) -> Callable[..., list[float]]:
    """The demo's reward, of the last thing that was said."""
    agent = InspectionAgent(task)
    rows = task.splits["train"]

    def reward(
        completions: Sequence[Sequence[Mapping[str, Any]]], row: Sequence[int], **_: object
    ) -> list[float]:
        last = [messages[-1] for messages in completions]
        said = [
            m["content"] or "" if m["role"] == "assistant" and not m.get("tool_calls") else ""
            for m in last
        ]
        return [agent.score(rows[i], text).reward for i, text in zip(row, said, strict=True)]

    return reward


def dataset_of(task: Task) -> Dataset:
    """The training rows."""
    rows = task.splits["train"]
    prompts = [opening_messages(task, user_prompt(row, task.input_columns)) for row in rows]
    return Dataset.from_list([{"prompt": p, "row": i} for i, p in enumerate(prompts)])


class Clock(TrainerCallback):
    """Tells each batch's end, and saves adapters off the clock."""

    def __init__(self, out: Path, seconds: float, batches: int) -> None:
        self._out, self._seconds, self._batches = out, seconds, batches
        self._start = self._cpu = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kept: Any) -> None:
        batch, rest = divmod(state.global_step, shared.UPDATES_PER_BATCH)
        if rest:
            return
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        print(json.dumps({"batch": batch, "seconds": seconds, "cpu_s": cpu}), flush=True)
        if batch % shared.JUDGE_EVERY == 0:
            kept["model"].save_pretrained(self._out / str(batch))
        control.should_training_stop = seconds >= self._seconds or batch >= self._batches
        self._start = time.perf_counter() - seconds
        self._cpu = time.process_time() - cpu


def settings(seed: int) -> GRPOConfig:
    """The demo's job in TRL's words; "steps" are optimizer updates there."""
    updates = shared.SCHEDULED_BATCHES * shared.UPDATES_PER_BATCH
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        seed=seed,
        use_cpu=True,
        bf16=False,
        use_vllm=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
        # batches
        generation_batch_size=ROWS,
        num_generations=shared.GROUP_SIZE,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=ROWS // shared.UPDATES_PER_BATCH // MICRO_BATCH,
        # sampling
        temperature=1.0,
        max_completion_length=EPISODE_TOKENS,
        max_tool_calling_iterations=shared.MAX_TURNS - 1,
        # learning; the rate falls to a fifth by the demo's last batch, so to 0 a quarter later
        learning_rate=2e-3,
        lr_scheduler_type="linear",
        max_steps=updates * 5 // 4,
        warmup_steps=2 * shared.UPDATES_PER_BATCH,
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dapo",
        scale_rewards="group",
    )


def main(base: Path, data: Path, seed: int, out: Path, seconds: float, batches: int) -> None:
    torch.set_num_threads(1)
    task = load(data)
    tokenizer = tokenizer_of(base, task)
    dataset = dataset_of(task)
    ids = tokenizer.apply_chat_template(
        dataset[0]["prompt"], add_generation_prompt=True, return_dict=False
    )
    print(json.dumps({"prompt": ids}), flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.generation_config.use_cache = True
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward_of(task),
        args=settings(seed),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, task_type="CAUSAL_LM"),
        environment_factory=environment_of(task),
        callbacks=[Clock(out, seconds, batches)],
    )
    trainer.train()


if __name__ == "__main__":
    _, base, data, seed, out, seconds, batches = sys.argv
    main(Path(base), Path(data), int(seed), Path(out), float(seconds), int(batches))
