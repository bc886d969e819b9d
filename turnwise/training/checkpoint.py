"""A checkpoint folder: written whole or not at all, and recognised by its hash.

adapter/            an ordinary PEFT folder
state.safetensors   optimizer moments and random states
meta.json           step, data position, base model, LoRA, versions
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from turnwise import errors
from turnwise.modeling.fingerprint import folder_sha256

# A full device, a spent quota, a file-size limit.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(folder: Path, write: Callable[[Path], None]) -> str:
    """Fill `folder` by `write` and make it durable in one move; its `folder_sha256`.

    `write` is given a temporary sibling. An older folder of that name is replaced. Raises
    `StorageFull` when there is no room and `Unavailable` for any other refusal of the file
    system; either way the temporary folder is gone and an older `folder` is as it was.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        sha256 = folder_sha256(temporary)
        _sync(temporary)
        _move(temporary, folder)
    except OSError as error:
        raise _named(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sha256


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _move(temporary: Path, folder: Path) -> None:
    # os.replace cannot put a folder over one that has content, so an older one steps aside. Who
    # dies in between loses only a checkpoint that was about to be written again.
    aside = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.replace(folder, aside)
    os.replace(temporary, folder)
    shutil.rmtree(aside, ignore_errors=True)
    _sync_one(folder.parent)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(error: OSError, folder: Path) -> errors.TurnwiseError:
    reason = error.strerror or str(error)
    if error.errno in _NO_ROOM:
        return errors.StorageFull(
            f"no room for checkpoint {folder} ({reason}); free space and resume the job"
        )
    return errors.Unavailable(f"checkpoint {folder} cannot be written: {reason}")
