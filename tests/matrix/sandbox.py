"""A place in which other people's tests may be root: they can write one directory and no other.

Everything else is read-only, the kernel's settings in /sys and /proc/sys as well, and what others
have mounted is gone; mounts, processes, the host name and shared memory are private to each program
that is run. Nothing of it remains. But /dev is the machine's: tests need its terminals, and who is
root can write what its devices are.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["KEEP_ONLY", "only_writing"]

KEEP_ONLY: Final = r"""
keep_only() {
    cut -d' ' -f5 /proc/self/mountinfo | sort -r | while read -r name; do
        point=$(printf %b. "$name")
        point=${point%.}
        case $point in /proc|/proc/*|/dev|/dev/*|/sys|/sys/*) continue ;; esac
        case $1/ in "${point%/}"/*) continue ;; esac
        # Somebody may just have unmounted it, which is seen here too.
        umount -l "$point" || ! grep -qF " $name " /proc/self/mountinfo
    done
}
"""
"""A function of the shell: of the mounts of its namespace, keep those on which a directory lies.

The kernel's own file systems stay as well. The copies of all others would keep volumes busy.
"""

_HOLD: Final = (
    KEEP_ONLY
    + r"""
set -e
top=$1
mount --bind "$top" "$top"
keep_only "$top"
cut -d' ' -f5 /proc/self/mountinfo | sort -r | while read -r name; do
    point=$(printf %b. "$name")
    point=${point%.}
    case $point in
        "$top"|/proc|/proc/*|/dev|/dev/*) continue ;;
        *) mount -o remount,bind,ro "$point" ;;
    esac
done
echo ready
exec cat
"""
)

# A program is not process 1 itself: that one ignores the signals that it does not expect.
_INIT: Final = """
mount -t tmpfs tmpfs /dev/shm && mount -o bind,ro /proc/sys /proc/sys && "$@"
exit $?
"""
_UNSHARE: Final = "unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc --"
_ALONE: Final = (*shlex.split(_UNSHARE), "sh", "-c", _INIT, "-")


@contextlib.contextmanager
def only_writing(top: Path) -> Iterator[list[str]]:
    """A prefix that runs a program (as root, with the directory / as its own) in such a place.

    What it starts ends with it. Raises AssertionError where such a place cannot be made.
    """
    hold = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _HOLD, "-", str(top)]
    with subprocess.Popen(
        hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as holder:
        assert holder.stdin and holder.stdout and holder.stderr
        try:
            ready = holder.stdout.readline() == b"ready\n"
            assert ready, f"no place for tests: {holder.stderr.read().decode(errors='replace')}"
            yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--", *_ALONE]
        finally:
            holder.stdin.close()
