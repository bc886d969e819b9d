"""A job's W&B run, in a process that may hang or die without anybody waiting for it.

    python -m turnwise.tracking.wandb_child

Each line on standard input is one call, answered by one line on standard output, with an
"error" where it failed. Calls: {"do": "open", "api_key", "project", ...}, {"do": "log", "seq",
"values"}, {"do": "close", "exit_code", "summary"}. When standard input closes, whatever the reason,
the run is left as preempted, to be resumed, and this process leaves.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
from typing import Any, TextIO

Json = dict[str, Any]

#: How long W&B may take to let go of a run once the server has gone.
LEAVE_S = 30.0


class Run:
    """What the calls act on."""

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, call: Json) -> Json:
        """Make the run, or take it up again; answers with its address, "" for an offline one."""
        wandb = importlib.import_module("wandb")  # the extra `wandb`; it takes a second
        settings = wandb.Settings(
            api_key=call["api_key"] or None,
            mode=call["mode"],
            silent=True,
            console="off",
            init_timeout=call["timeout_s"],
            # What the server's machine is and runs is none of the account's business.
            disable_git=True,
            disable_code=True,
            save_code=False,
            host="turnwise",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=call["project"],
            entity=call["entity"] or None,
            name=call["run_name"],
            id=call["run_id"],
            config=call["config"],
            dir=call["folder"],
            resume="allow",
            settings=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return {"url": self._run.url if call["mode"] == "online" else ""}

    def log(self, call: Json) -> Json:
        """A step's metrics. W&B's own step is the event's number, which never goes back: what is
        told a second time is dropped by W&B.
        """
        self._run.log(call["values"], step=call["seq"], commit=True)
        return {}

    def close(self, call: Json) -> Json:
        """End the run as the job has ended."""
        self._run.summary.update(call["summary"])
        self._run.finish(exit_code=call["exit_code"])
        self._run = None
        return {}

    def leave(self) -> None:
        """The server has gone: leave the run to be resumed."""
        if self._run is not None:
            self._run.mark_preempting()
            self._run.finish(exit_code=1)


def answer(run: Run, call: Json) -> Json:
    """Act on one call. Every error is an answer."""
    try:
        act = {"open": run.open, "log": run.log, "close": run.close}[call["do"]]
        return act(call)
    except ImportError:
        return {"error": "the package wandb is not installed on this server"}
    except BaseException as error:  # supervision: the other end decides what to do
        said = " ".join(str(error).split()) or type(error).__name__
        key = call.get("api_key")
        return {"error": said.replace(key, "***") if key else said}


def main() -> None:
    """Answer until standard input closes."""
    # Ctrl-C in a terminal reaches the whole process group; the server decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what W&B prints is no answer
    calls: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin, calls), daemon=True).start()
    run = Run()
    while line := calls.get():
        replies.write(json.dumps(answer(run, json.loads(line))) + "\n")
        replies.flush()
    run.leave()


def _read(source: TextIO, calls: queue.Queue[str]) -> None:
    for line in source:
        calls.put(line)
    calls.put("")
    timer = threading.Timer(LEAVE_S, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
