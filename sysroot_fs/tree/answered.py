"""What the kernel was just told of a name, for the request that follows from it.

Linux looks a name up and then asks for the change, in one system call of the guest and with the
directory locked. What the first has found still holds for the second as much as anything that is
looked at before a change is made: the change itself is exclusive, or goes by the name.
"""

from __future__ import annotations

import time
from typing import Final

from attrs import define, field

from sidecar.twin import Caller
from sidecar.walk import Absent, Found
from sysroot_fs.tree.inodes import Inode

_BELIEVED_SECONDS: Final = 0.002
_MOST: Final = 2
"""A rename asks for two names."""

_Key = tuple[Inode, bytes, int, int, int]


@define(slots=True, eq=False)
class Answered:
    """The last answers of one tree."""

    _answers: dict[_Key, tuple[float, Found | Absent]] = field(factory=dict, init=False)

    def note(self, parent: Inode, name: bytes, caller: Caller, found: Found | Absent) -> None:
        """*caller* was told that *name* in *parent* is *found*."""
        answers = self._answers
        key = (parent, name, caller.pid, caller.uid, caller.gid)
        answers.pop(key, None)
        if len(answers) >= _MOST:
            del answers[next(iter(answers))]
        answers[key] = (time.monotonic(), found)

    def take(self, parent: Inode, name: bytes, caller: Caller) -> Found | Absent | None:
        """What it was told a moment ago, None where it asks for the first time."""
        key = (parent, name, caller.pid, caller.uid, caller.gid)
        answer = self._answers.pop(key, None)
        if answer is None or time.monotonic() - answer[0] > _BELIEVED_SECONDS:
            return None
        return answer[1]

    def forget(self, parent: Inode) -> None:
        """The kernel has let go of *parent*: no descriptor of it is to be kept."""
        for key in [key for key in self._answers if key[0] is parent]:
            del self._answers[key]

    def clear(self) -> None:
        """Names have changed: what was said before may be so no longer."""
        self._answers.clear()

    def __enter__(self) -> None:
        """Names are about to change; at the end nothing is believed any more."""

    def __exit__(self, *_: object) -> None:
        self.clear()
