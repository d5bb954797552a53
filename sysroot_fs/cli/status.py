"""`sysroot-fs status`: what is mounted here, and what each server tells of itself.

Each mount is asked by a child process of its own (`sysroot_fs.fuse.status` has the question): one
that hangs in a dead server's mount cannot be ended, only left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from sysroot_fs.cli.errors import MountpointError
from sysroot_fs.cli.preflight import MountLine, topmost_mounts
from sysroot_fs.null import to_null
from sysroot_fs.text import absolute, json_fields, reason, shown

EXAMPLES = """\
examples:
  sysroot-fs status
      everything of this kind that is mounted where this is run
  sysroot-fs status --json /mnt/guest
      one mount, for programs
"""

SECONDS: Final = 2.0
"""How long the servers have to answer, all together."""
NAME: Final = "sysroot-fs.status"
"""The extended attribute that is asked for: `sysroot_fs.fuse.status.NAME`."""
_TYPE: Final = b"fuse.sysroot"
_GONE: Final = (errno.ENOTCONN, errno.ECONNABORTED)


@attrs.frozen
class Answer:
    """What came of one mount: `serving` with what was told, else `dead`, `hangs` or `silent`."""

    mount: MountLine
    state: str
    why: str = ""
    told: dict[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class _Asked:
    mount: MountLine
    pid: int
    pipe: int


def _ask(mount: MountLine) -> _Asked:
    """Start a child that asks; it writes the value to the pipe, or a blank and an errno."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return _Asked(mount, pid, reader)
    try:
        # Left behind, it must not keep a reader of our output waiting.
        to_null(0, 1, 2)
        try:
            value = os.getxattr(mount.where, NAME)
        except OSError as error:
            value = b" %d" % (error.errno or errno.EIO)
        with open(writer, "wb") as pipe:
            pipe.write(value)
    finally:
        os._exit(0)


def _judge(mount: MountLine, said: bytes) -> Answer:
    if not said.startswith(b" "):
        return Answer(mount, "serving", told=json.loads(said))
    number = int(said)
    if number in _GONE:
        undo = f"`fusermount3 -u {shown(mount.where)}` takes it away"
        return Answer(mount, "dead", f"its server is gone: {undo}")
    if number == errno.ENODATA:
        return Answer(mount, "silent", "it tells only root and its own user")
    return Answer(mount, "silent", f"it cannot be asked: {reason(OSError(number, ''))}")


def ask_all(mounts: Iterable[MountLine], seconds: float = SECONDS) -> Iterator[Answer]:
    """What the servers of *mounts* tell, in that order, within *seconds* for all of them."""
    asked = [_ask(mount) for mount in mounts]
    end = time.monotonic() + seconds
    for one in asked:
        with open(one.pipe, "rb") as pipe:
            said = b""
            while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                piece = os.read(one.pipe, 65536)
                said += piece
                if not piece:
                    break
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
                yield Answer(one.mount, "hangs", f"no answer within {seconds:g} s")
                continue
        os.waitpid(one.pid, 0)
        if said:
            yield _judge(one.mount, said)
        else:
            yield Answer(one.mount, "silent", "who asked it was killed")


def chosen(mountpoints: Iterable[bytes]) -> list[MountLine]:
    """The mounts at *mountpoints*, all of ours without any. Raises MountpointError."""
    there = topmost_mounts()
    wanted = []
    for path in mountpoints:
        # Not the last part: whoever looks at it asks the server.
        parent, name = os.path.split(absolute(path))
        mount = there.get(os.path.join(os.path.realpath(parent), name))
        if mount is None or not mount.fstype.startswith(b"fuse"):
            raise MountpointError(f"nothing of sysroot-fs is mounted at {shown(path)}")
        wanted.append(mount)
    # Without a wish: not what is bound from inside of one, which has no answer of its own.
    return wanted or [
        mount for mount in there.values() if mount.fstype == _TYPE and mount.top == b"/"
    ]


def as_json(answer: Answer) -> dict[str, Any]:
    """One object for one mount."""
    why = {"why": answer.why} if answer.why else {}
    where = json_fields("mountpoint", answer.mount.where)
    return {**where, "state": answer.state, **why, **answer.told}


def _value(value: object) -> str:
    match value:
        case None:
            return "none"
        case dict():
            rows = sorted(value.items(), key=lambda row: str(row[0]))
            return ", ".join(f"{name} {_value(one)}" for name, one in rows) or "none"
        case list():
            return ":".join(map(_value, value)) or "none"
        case True | False:
            return "yes" if value else "no"
        case _:
            return shown(str(value).encode("utf-8", "surrogateescape"))


_IN_HEAD: Final = frozenset({"sysroot", "host", "memory_kib", "pid", "version"})


def as_text(answer: Answer) -> str:
    """A line for a mount that tells nothing, else one for each thing that is told."""
    where, told = shown(answer.mount.where), answer.told
    if answer.state != "serving":
        return f"{where}: {answer.state}: {answer.why}"
    lines = [
        f"{where}: {_value(told['sysroot'])} over {_value(told['host'])}",
        f"  server            pid {told['pid']}, {told['memory_kib'] / 1024:.1f} MiB, "
        f"version {told['version']}",
    ]
    for name, value in told.items():
        if name not in _IN_HEAD and not name.endswith("_hex"):
            lines.append(f"  {name.replace('_', ' '):<16}  {_value(value)}")
    return "\n".join(lines)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "status",
        help="say what is mounted here, and how it is",
        description="Show for each mount the sysroot and the host, the door in use, the options\n"
        "that are not the default, the server's process and memory, how many inodes the kernel\n"
        "knows, what is open, and how many requests of each kind there were. Only root and the\n"
        "server's own user are told. A mount that is dead, does not answer within two seconds,\n"
        "or does not tell you is one line. The exit status is 1 if there is such a one, else 0.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "mountpoints", metavar="MOUNTPOINT", nargs="*", help="only these (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and show; the value is the exit status."""
    answers = list(ask_all(chosen(map(os.fsencode, arguments.mountpoints))))
    if arguments.json:
        print(json.dumps([as_json(answer) for answer in answers], indent=2))
    else:
        print("\n".join(map(as_text, answers)) or "nothing is mounted")
    return 0 if all(answer.state == "serving" for answer in answers) else 1
