"""Telling the kernel what to forget, from a thread of its own.

The kernel takes a directory's lock for that, or a page's, which it also holds while it waits for
the reply to a request: whoever answers requests must not wait for it.

What has changed behind the mount is told twice. The answer that the change has made wrong may be on
its way when the kernel is told for the first time; then it does not know the name yet, and would
keep it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from sysroot_fs.fuse.kernel import abi
from sysroot_fs.tree.coherence import Attributes, Entry, Notice, Removed

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 0.5
"""After how long it is told for the second time."""
_PATIENCE_SECONDS: Final = 0.2
_PAUSE_SECONDS: Final = 0.01
_UNKNOWN: Final = frozenset({
    errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.ESTALE, errno.EBUSY,
})  # fmt: skip
"""The kernel does not know the name or the inode, something is mounted there, or nothing is."""


def _message(code: int, body: bytes) -> bytes:
    return abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), code, 0) + body


def _entry(parent: int, name: bytes, flags: int) -> bytes:
    body = abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0"
    return _message(abi.NOTIFY_INVAL_ENTRY, body)


def attributes_message(inode: int, data: bool) -> bytes:
    """What has the kernel ask for the attributes of *inode* again, and with *data* for its data."""
    # A negative offset: the attributes alone.
    body = abi.NOTIFY_INVAL_INODE_OUT.pack(inode, 0 if data else -1, 0)
    return _message(abi.NOTIFY_INVAL_INODE, body)


@define(slots=True, eq=False)
class Notices:
    """What has to be told through *device*; the thread starts with the first."""

    device: int = field(converter=os.dup)
    """Its own: the number of the door's may be another file's before the thread has ended."""
    _held: dict[bytes, bool] = field(factory=dict, init=False)
    _now: dict[bytes, bool] = field(factory=dict, init=False)
    _again: dict[bytes, float] = field(factory=dict, init=False)
    _flushes: deque[tuple[bytes, Callable[[], None]]] = field(factory=deque, init=False)
    _changed: threading.Condition = field(factory=threading.Condition, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def drop(self, parent: int, name: bytes) -> None:
        """The kernel shall forget *name* in *parent* and what lies below, mounts included."""
        self._put(_entry(parent, name, 0), again=False)

    def changed(self, notice: Notice) -> None:
        """Something has changed behind the mount: the kernel shall ask again."""
        match notice:
            case Entry(parent, name):
                self._put(_entry(parent, name, abi.EXPIRE_ONLY), again=True)
            case Removed(parent, inode, name):
                body = abi.NOTIFY_DELETE_OUT.pack(parent, inode, len(name)) + name + b"\0"
                self._put(_message(abi.NOTIFY_DELETE, body), again=False)
            case Attributes(inode, data):
                self._put(attributes_message(inode, data), again=True)

    def flush(self, inode: int, start: int, length: int, then: Callable[[], None]) -> bool:
        """The kernel shall hand over what it keeps of a part of a file, and forget it.

        Of *inode* from *start* on, *length* bytes. The thread calls *then* when it has; never where
        the mount goes before. False where there is no thread to be had.
        """
        body = abi.NOTIFY_INVAL_INODE_OUT.pack(inode, start, length)
        with self._changed:
            if not self._started():
                return False
            self._flushes.append((_message(abi.NOTIFY_INVAL_INODE, body), then))
            self._changed.notify()
        return True

    def _put(self, message: bytes, again: bool) -> None:
        self._held[message] = again or self._held.get(message, False)

    @property
    def waiting(self) -> bool:
        """Whether there is something to `tell`."""
        return bool(self._held)

    def tell(self) -> None:
        """Have the thread tell what there is. To be called when no reply is owed any more.

        A server that is killed while it owes the reply for which the kernel holds a directory,
        with this thread waiting for the same directory in the kernel, would never be gone, and
        who waits for the reply would neither.
        """
        with self._changed:
            if not self._started():
                return
            for message, again in self._held.items():
                self._now[message] = again or self._now.get(message, False)
            self._held.clear()
            self._changed.notify()

    def _started(self) -> bool:
        """Whether there is a thread; false where there are too many: the next time, perhaps."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="notices", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def close(self) -> None:
        """End the thread, after the message that it is at. Nobody reads requests any more.

        Where the kernel keeps it waiting for somebody who waits for a reply, that call fails.
        """
        if self._thread is not None:
            with self._changed:
                self._closed = True
                self._now.clear()
                self._flushes.clear()
                self._changed.notify()
            self._thread.join(_PATIENCE_SECONDS)
            if self._thread.is_alive():
                self._refuse(self._thread)
        os.close(self.device)

    def _refuse(self, thread: threading.Thread) -> None:
        """Let the calls fail that hold up *thread*."""
        os.set_blocking(self.device, False)
        buffer = bytearray(abi.MAX_WRITE + 4096)
        while thread.is_alive():
            try:
                os.readv(self.device, [buffer])
            except BlockingIOError:
                thread.join(_PAUSE_SECONDS)
                continue
            except OSError as error:
                if error.errno in abi.GONE:
                    # The mount is: everything in it fails now.
                    return
                continue
            _, opcode, unique, *_ = abi.IN_HEADER.unpack_from(buffer)
            if opcode not in abi.UNANSWERED:
                with contextlib.suppress(OSError):
                    os.write(
                        self.device,
                        abi.OUT_HEADER.pack(abi.OUT_HEADER.size, -errno.ECONNABORTED, unique),
                    )

    def _run(self) -> None:
        while batch := self._batch():
            for message, then in batch:
                self._send(message)
                if then is not None:
                    then()

    def _batch(self) -> list[tuple[bytes, Callable[[], None] | None]]:
        """What is to be told next, waiting for it; nothing at the end."""
        with self._changed:
            while True:
                now = time.monotonic()
                batch: list[tuple[bytes, Callable[[], None] | None]] = [*self._flushes]
                self._flushes.clear()
                batch += [(message, None) for message in self._now]
                for message, again in self._now.items():
                    if again:
                        # Once more after the last change, and in the order of time.
                        self._again.pop(message, None)
                        self._again[message] = now + AGAIN_SECONDS
                self._now.clear()
                while self._again and (first := next(iter(self._again.items())))[1] <= now:
                    del self._again[first[0]]
                    batch.append((first[0], None))
                if batch or self._closed:
                    return batch
                due = next(iter(self._again.values()), None)
                self._changed.wait(None if due is None else due - now)

    def _send(self, message: bytes) -> None:
        try:
            os.write(self.device, message)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                log.warning("the kernel does not forget: %s", error)
