"""Where the torch rooms meet: the engine process, the learner process, and merging for export.

    python -m turnwise.worker engine|learner|merge FD SPEC

FD is this process's end of a socket pair, SPEC an `EngineSpec`, `LearnerSpec` or `MergeSpec` as
JSON. The process ends when the other end closes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import msgspec

from turnwise.domain.training import LearnerSpec
from turnwise.ports import EngineSpec, MergeSpec


def main(argv: list[str]) -> None:
    """Serve until the parent leaves."""
    kind, descriptor, spec = argv
    # Ctrl-C in a terminal reaches the whole process group; the server decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = socket.socket(fileno=int(descriptor))
    parent.setblocking(False)
    if kind == "engine":
        from turnwise.sampling.process import serve_engine

        asyncio.run(serve_engine(parent, msgspec.json.decode(spec, type=EngineSpec)))
    elif kind == "merge":
        from turnwise.exporting.process import serve_merge

        asyncio.run(serve_merge(parent, msgspec.json.decode(spec, type=MergeSpec)))
    else:
        from turnwise.training.process import serve_learner

        asyncio.run(serve_learner(parent, msgspec.json.decode(spec, type=LearnerSpec)))


if __name__ == "__main__":
    main(sys.argv[1:])
    # A step of torch work may still run in a thread; nobody is left to read its result.
    os._exit(0)
