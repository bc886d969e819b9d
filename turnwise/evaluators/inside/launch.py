"""Starts one program in a sandbox. Run by the evaluators' interpreter, outside of the sandbox yet.

    python -I launch.py < spec.json

It makes the sandbox with the kernel's own calls (ctypes: unshare, mount, mount_setattr,
pivot_root): there is no bubblewrap to install, util-linux's `unshare` cannot send the socket below,
and a setuid helper would be one more thing to trust. The steps:

    this process   outside; new namespaces of users, mounts, processes, network, IPC and names
      └ init       process 1 of them; a view of its own of the file system, loopback alone
          └ argv   the program, without any capability; whatever it starts ends with init

The view holds what `read_only` names and the folder `work` as /work; so the server's data folder
is not there. The network has its own loopback; a socket that listens on it is made inside and sent
out through the descriptor `listener`, where the server accepts on it: the one way out.

Where `isolated` is false there are no namespaces: only a clean environment, limits and a process
group, and this process, as the subreaper, ends what is left.

Ends with the program's exit code; 71 and a line on stderr when the sandbox cannot be made. Killing
it, or the end of `parent`, ends everything inside.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

CANNOT = 71  # EX_OSERR

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
SYS_MOUNT_SETATTR = 442  # the same number on every architecture
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
SIOCSIFFLAGS, IFF_UP, IFF_RUNNING = 0x8914, 1, 64

#: Who the program is inside; outside it is the server's user, or nobody where that is root.
USER = 1000
NOBODY = 65534
DEVICES = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)
_pivot_root_numbers = {"x86_64": 155, "aarch64": 41, "riscv64": 41}


def main() -> int:
    """Make the sandbox, run the program in it, and pass on how it ended."""
    spec = json.load(sys.stdin.buffer)
    _end_with(spec["parent"], signal.SIGTERM)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    try:
        return _isolated(spec) if spec["isolated"] else _plain(spec)
    except OSError as error:
        print(f"the sandbox cannot be made: {error}", file=sys.stderr, flush=True)
        return CANNOT


# ── with namespaces ───────────────────────────────────────────────────────────────────────────


def _isolated(spec: dict[str, Any]) -> int:
    _enter_namespaces(with_network=spec["network"] == "none")
    ours, theirs = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(theirs)
        _run_as_init(spec, ours)
    os.close(ours)
    _close(spec)
    # `init` has nobody above it in its namespace: its death is everybody's.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGKILL))
    return _wait(init)


def _run_as_init(spec: dict[str, Any], alive: int) -> None:
    """Process 1: prepare, start the program, reap all there is, end with it."""
    code = CANNOT
    try:
        _end_with(0, signal.SIGKILL)
        # The end of the process outside before that line is seen here: nobody holds the pipe.
        os.set_blocking(alive, False)
        if _is_closed(alive):
            os._exit(CANNOT)
        if spec["network"] == "none":
            _loopback_up()
            _send_listener(spec)
        _build_view(spec)
        _drop_privileges()
        _end_with(0, signal.SIGKILL)  # a change of user forgets it
        program = os.fork()
        if program == 0:
            os.close(alive)
            _become(spec)
        _close(spec)
        code = _reap(program)
    except BaseException as error:  # a child never returns into its parent's program
        print(f"the sandbox cannot be made: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _enter_namespaces(*, with_network: bool) -> None:
    """Unshare, with the user mapped: from outside where root maps two, from inside where not."""
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    uid, gid, pid = os.geteuid(), os.getegid(), os.getpid()
    is_root = uid == 0
    done, ready = os.pipe()
    mapper = os.fork() if is_root else -1
    if mapper == 0:
        os.close(ready)
        os.read(done, 1)
        _write_maps(pid, f"0 0 1\n{USER} {NOBODY} 1", f"0 0 1\n{USER} {NOBODY} 1")
        os._exit(0)
    _call("unshare", flags | (CLONE_NEWNET if with_network else 0))
    if is_root:
        os.write(ready, b".")
        if _wait(mapper) != 0:
            raise OSError(errno.EPERM, "the users of the sandbox cannot be mapped")
    else:
        Path("/proc/self/setgroups").write_text("deny")
        _write_maps(pid, f"{USER} {uid} 1", f"{USER} {gid} 1")
    os.close(done)
    os.close(ready)


def _write_maps(pid: int, users: str, groups: str) -> None:
    Path(f"/proc/{pid}/gid_map").write_text(groups)
    Path(f"/proc/{pid}/uid_map").write_text(users)


def _drop_privileges() -> None:
    """No capability, no other user, and no program that could give one back."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh", b"lo", IFF_UP | IFF_RUNNING)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request + bytes(40 - len(request)))


def _send_listener(spec: dict[str, Any]) -> None:
    """Listen on the sandbox's loopback, and let the server accept."""
    with (
        socket.socket(fileno=os.dup(spec["listener"])) as way_out,
        socket.create_server(("127.0.0.1", spec["port"]), backlog=128) as listener,
    ):
        socket.send_fds(way_out, [b"."], [listener.fileno()])


# ── the view of the file system ───────────────────────────────────────────────────────────────


def _build_view(spec: dict[str, Any]) -> None:
    root = Path(spec["root"])
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", str(root), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m")
    for path in spec["read_only"]:
        _show(Path(path), root, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for source, place in spec["shown_as"]:
        _bind(Path(source), root / place.lstrip("/"), ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    for path in spec["hidden"]:
        _hide(root / path.lstrip("/"))
    for name in DEVICES:
        _bind(Path("/dev", name), root / "dev" / name, ATTR_NOSUID)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    _bind(Path(spec["work"]), root / "work", ATTR_NOSUID | ATTR_NODEV)
    if not (root / "tmp").exists():
        (root / "tmp").symlink_to("/work/tmp")
    (root / "proc").mkdir(exist_ok=True)
    _mount("proc", str(root / "proc"), "proc", MS_NOSUID | MS_NODEV)
    _set_attributes(root, ATTR_RDONLY, recursive=False)
    os.chdir(root)
    number = _pivot_root_numbers.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"not known how to pivot on {os.uname().machine}")
    _check(_libc.syscall(number, b".", b"."), "pivot_root")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def _show(path: Path, root: Path, attributes: int) -> None:
    """The same path inside; a link as the link that it is, beside what it leads to."""
    place = root / str(path).lstrip("/")
    if path.is_symlink():
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.readlink())
    elif path.exists():
        _bind(path, place, attributes)


def _bind(source: Path, place: Path, attributes: int) -> None:
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.touch()
    _mount(str(source), str(place), None, MS_BIND | MS_REC)
    _set_attributes(place, attributes, recursive=True)


def _hide(place: Path) -> None:
    """What lies under a shown path but is not the sandbox's: an empty folder in its place."""
    if place.is_dir():
        _mount("tmpfs", str(place), "tmpfs", MS_NOSUID | MS_NODEV, "mode=000,size=4k")


def _set_attributes(place: Path, attributes: int, *, recursive: bool) -> None:
    sets = struct.pack("QQQQ", attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    done = _libc.syscall(
        SYS_MOUNT_SETATTR,
        ctypes.c_int(AT_FDCWD),
        os.fsencode(place),
        ctypes.c_uint(flags),
        sets,
        ctypes.c_size_t(len(sets)),
    )
    _check(done, f"mount_setattr {place}")


# ── without namespaces ────────────────────────────────────────────────────────────────────────


def _plain(spec: dict[str, Any]) -> int:
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    program = os.fork()
    if program == 0:
        _end_with(0, signal.SIGKILL)
        _become(spec)
    _close(spec)

    def end(*_: object) -> None:
        _kill_descendants()
        os._exit(-signal.SIGTERM & 0xFF)

    signal.signal(signal.SIGTERM, end)
    code = _reap(program)
    _kill_descendants()
    return code


def _kill_descendants() -> None:
    """SIGKILL until there is none: those of a killed process come to this one."""
    while children := _children(os.getpid()):
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            _wait(child)


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ── both ──────────────────────────────────────────────────────────────────────────────────────


def _become(spec: dict[str, Any]) -> None:
    """Turn into the program: its limits, its folder, its environment, and no other descriptor."""
    try:
        os.setsid()
        for name, value in spec["limits"].items():
            kind = getattr(resource, f"RLIMIT_{name}")
            _, most = resource.getrlimit(kind)
            limit = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (limit, limit))
        os.chdir(spec["cwd"])
        kept = spec["control"]
        if kept is not None:
            os.set_inheritable(kept, True)
        last = 2
        for fd in sorted({kept} - {None}):
            os.closerange(last + 1, fd)
            last = fd
        os.closerange(last + 1, 65536)
        os.execve(spec["argv"][0], spec["argv"], spec["env"])
    except BaseException as error:
        print(f"{spec['argv'][0]} cannot be started: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(CANNOT)


def _reap(program: int) -> int:
    """Wait for all children until the program has ended."""
    while True:
        pid, status = os.wait()
        if pid == program:
            return os.waitstatus_to_exitcode(status) & 0xFF


def _wait(pid: int) -> int:
    while True:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF
        except InterruptedError:
            continue
        except ChildProcessError:
            return CANNOT


def _close(spec: dict[str, Any]) -> None:
    """The program's descriptors are its own: their end must tell the server of its end."""
    for fd in (spec["control"], spec["listener"]):
        if fd is not None:
            os.close(fd)


def _end_with(parent: int, sig: int) -> None:
    """Be sent `sig` when the parent ends; end at once if it has ended already."""
    _call("prctl", PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if parent and os.getppid() != parent:
        os._exit(CANNOT)


def _is_closed(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def _mount(source: str | None, place: str, kind: str | None, flags: int, data: str = "") -> None:
    done = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(place),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(done, f"mount {place}")


def _call(name: str, *arguments: Any) -> None:
    _check(getattr(_libc, name)(*arguments), name)


def _check(done: int, what: str) -> None:
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main())
