"""Telling the kernel to forget names, from a thread of its own.

The kernel takes the directory's lock for that, which it also holds while it waits for the reply to
a request that changes the directory: whoever answers requests must not wait for it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from queue import SimpleQueue

from attrs import define, field

from sysroot_fs.fuse.kernel import abi

log = logging.getLogger(__name__)


@define(slots=True, eq=False)
class Notices:
    """The queue of what has to be told through *device*; its thread starts with the first."""

    device: int
    _queue: SimpleQueue[tuple[int, bytes] | None] = field(factory=SimpleQueue, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def entry(self, parent: int, name: bytes) -> None:
        """The kernel shall forget *name* in *parent*, soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="notices", daemon=True)
            self._thread.start()
        self._queue.put((parent, name))

    def close(self) -> None:
        """End the thread when all is told."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(1.0)

    def _run(self) -> None:
        while (wanted := self._queue.get()) is not None:
            parent, name = wanted
            body = abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
            size = abi.OUT_HEADER.size + len(body)
            head = abi.OUT_HEADER.pack(size, abi.NOTIFY_INVAL_ENTRY, 0)
            try:
                os.writev(self.device, (head, body))
            except OSError as error:
                # ENOENT: it does not know the name.
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                    log.warning("the kernel does not forget: %s", error)
