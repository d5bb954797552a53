"""Requests over io_uring: a queue, a ring and a thread for each processor.

Over read(2) there is one thread, and where the scheduler has put it on another processor than the
caller each request pays for two wake-ups across (or waits there behind whoever else is busy). Here
the thread of the caller's own processor takes it. The tree stands no two of them at once: they take
turns (`Rings.turn`), and the loop, which still reads what the kernel does not send this way (INIT,
FORGET, INTERRUPT) and hears of changes and signals, takes turns with them.

An entry is kept from the request to its answer, and there are no more: whoever waits long would
keep others waiting. So locks, which are waited for without end, exclude this.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field

from sidecar.twin import Caller
from sysroot_fs.fuse.kernel.abi import Opcode
from sysroot_fs.fuse.kernel.features import processors
from sysroot_fs.fuse.kernel.request import Reply, Request
from sysroot_fs.fuse.kernel.ring import ENTRIES, Ring
from sysroot_fs.fuse.notices import Notices

log = logging.getLogger(__name__)

Answer = tuple[int, Reply]
"""An errno, zero for none, and the body of a reply."""
Handled = Callable[[Request], Answer | None]
"""Does what a request asks for; None where it has no answer, or one later."""

_PATIENCE_SECONDS: Final = 5.0
_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.ENODEV})


@define(slots=True, eq=False)
class _Served:
    """A ring with its thread and what other threads have answered meanwhile."""

    queue: int
    thread: threading.Thread | None = field(default=None, init=False)
    ring: Ring | None = field(default=None, init=False)
    failure: OSError | None = field(default=None, init=False)
    made: threading.Event = field(factory=threading.Event, init=False)
    later: deque[tuple[int, int, Answer]] = field(factory=deque, init=False)
    """Entries with the number of the request and its answer."""


@define(slots=True, eq=False)
class Rings:
    """All rings of one connection.

    *serve* handles a request, None for FSYNC, which is answered later (by `answer`); *failed* is
    called where a thread cannot go on.
    """

    device: int
    notices: Notices
    serve: Handled
    failed: Callable[[], None]
    turn: threading.Lock = field(factory=threading.Lock, init=False)
    """Who has it may use the tree."""
    running: bool = field(default=False, init=False)
    """Whether the kernel may use them."""
    _all: list[_Served] = field(factory=list, init=False)
    _owed: dict[int, tuple[_Served, int]] = field(factory=dict, init=False)
    """Requests that are answered later, with their entries."""
    _owing: set[int] = field(factory=set, init=False)
    """The queues whose threads owe an answer."""
    _begin: threading.Event = field(factory=threading.Event, init=False)
    _stopped: bool = field(default=False, init=False)

    def make(self) -> bool:
        """Make them, before the kernel is told; False, with a word in the log, where it fails."""
        try:
            for queue in range(processors()):
                one = _Served(queue)
                one.thread = threading.Thread(
                    target=self._run, args=(one,), name=f"ring {queue}", daemon=True
                )
                one.thread.start()
                self._all.append(one)
            for one in self._all:
                one.made.wait()
                if one.failure is not None:
                    raise one.failure
        except (OSError, RuntimeError) as failure:
            # RuntimeError: too many threads.
            log.warning("io_uring is off: %s", failure)
            self.stop()
            return False
        return True

    def begin(self) -> bool:
        """The kernel has been told: until all rings are registered it holds requests back.

        False where there are none.
        """
        self.running = bool(self._all)
        self._begin.set()
        return self.running

    def stop(self) -> None:
        """End the threads; who still waits for an answer hears that the mount is gone."""
        self._stopped = True
        self._begin.set()
        for one in self._all:
            if one.ring is not None:
                one.ring.ring_bell()
        for one in self._all:
            if one.thread is not None:
                one.thread.join(_PATIENCE_SECONDS)
                if one.ring is not None and not one.thread.is_alive():
                    one.ring.close()
        self._all.clear()

    def answer(self, unique: int, answer: Answer) -> bool:
        """Answer a request that was to be answered later. From any thread; False for no such."""
        owed = self._owed.pop(unique, None)
        if owed is None:
            return False
        one, index = owed
        one.later.append((index, unique, answer))
        assert one.ring is not None
        one.ring.ring_bell()
        return True

    def tell(self) -> None:
        """Have the kernel told what there is to tell, unless a thread owes an answer: it will.

        With the turn.
        """
        if self.notices.waiting and not self._owing:
            self.notices.tell()

    def _run(self, one: _Served) -> None:
        try:
            if one.queue in os.sched_getaffinity(0):
                os.sched_setaffinity(0, {one.queue})
            ring = one.ring = Ring(self.device, one.queue)
        except OSError as failure:
            one.failure = failure
            return
        finally:
            one.made.set()
        try:
            self._begin.wait()
            if not self._stopped:
                ring.register()
                self._serve(one, ring)
        except BaseException:
            log.exception("the ring of processor %d", one.queue)
            self.failed()

    def _serve(self, one: _Served, ring: Ring) -> None:
        queue, turn, owing, notices = one.queue, self.turn, self._owing, self.notices
        # Looked up once, as in the loop.
        serve, later = self.serve, int(Opcode.FSYNC)
        request = Request(0, 0, 0, Caller(0, 0, 0), memoryview(b""))
        while (index := ring.next(request)) is not None:
            if index == ENTRIES:
                ring.silence()
                while one.later:
                    at, unique, (code, reply) = one.later.popleft()
                    ring.answer(at, unique, code, reply)
                if self._stopped:
                    return
                continue
            unique = request.unique
            with turn:
                owing.add(queue)
                if request.opcode == later:
                    self._owed[unique] = one, index
                answer = serve(request)
            if answer is not None:
                code, reply = answer
                ring.answer(index, unique, code, reply)
            # In this order: who has something to tell looks whether answers are owed.
            owing.discard(queue)
            if notices.waiting:
                ring.enter(wait=False)
                with turn:
                    self.tell()
        if ring.refused not in _GONE:
            log.warning(
                "io_uring is off for processor %d: %s", one.queue, os.strerror(ring.refused)
            )
