"""The loop: read a request, have it handled, write the reply; one thread, nothing in between.

Where requests come over io_uring they are handled in threads of their own, in turns (see `rings`),
and few are left to be read here.

It waits for whatever else the server has to hear of as well (`Loop.beside`: signals) and ends when
the mount does or `Loop.stop` is called. fsync really blocks and goes to threads of its own;
who waits for a lock is answered later. An OSError of a handler is the guest's errno; anything else
is a bug: logged with its traceback, EIO for the guest, and the mount goes on.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sidecar.twin import Caller
from sysroot_fs.fuse.awake import REST_SECONDS, Awake
from sysroot_fs.fuse.failures import errno_of
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Opcode
from sysroot_fs.fuse.kernel.door import Door
from sysroot_fs.fuse.kernel.locks import AGAIN_SECONDS, Later
from sysroot_fs.fuse.kernel.request import Reply, Request
from sysroot_fs.fuse.kernel.rings import Answer, Handled, Rings
from sysroot_fs.fuse.notices import Notices
from sysroot_fs.tree.watching import COLLECT_SECONDS

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

_BUFFER: Final = abi.MAX_WRITE + 4096
_PAUSED: Final = frozenset({errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""What reading the device may say of a request that was taken back meanwhile."""
_MALFORMED: Final = (struct.error, OverflowError)
"""What comes of a request that is too short, or has a number that no call takes."""
_WAITING: Final = 32
"""How many fsyncs may wait at once."""
_PAUSE_SECONDS: Final = 0.002
"""With rings: how long what their own work brings about (FORGET, events) may collect."""
_COLLECTED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})

_MASKS: Final = (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt")
"""The signals of a thread in /proc/PID/status."""
_HARMLESS: Final = sum(
    1 << (number - 1)
    for number in (
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    )
)
"""Those that end nobody who has not asked for them."""

_unpack_header = abi.IN_HEADER.unpack_from
_pack_header = abi.OUT_HEADER.pack
_HEAD: Final = abi.OUT_HEADER.size


@define(slots=True, eq=False)
class Loop:
    """Serves the door's device."""

    door: Door
    debug: bool = False
    beside: dict[int, Callable[[], object]] = field(factory=dict)
    """Other descriptors to wait for, with what to do when one can be read, between requests."""
    _wake: int = field(factory=lambda: os.eventfd(0, os.EFD_CLOEXEC), init=False)
    _stopped: bool = field(default=False, init=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)
    _notices: Notices = field(init=False)
    _rings: Rings = field(init=False)
    _awake: Awake = field(init=False)
    _handled: Handled = field(init=False)
    _watched: int = field(default=-1, init=False)
    """The descriptor that tells of changes behind the mount."""
    _listens_at: float = field(default=0.0, init=False)
    """When it is to be waited for again; zero while it is."""
    _patience: float | None = field(default=None, init=False)
    """For how many seconds `run` waits."""
    _poll: select.poll = field(factory=select.poll, init=False)
    _syncs: dict[int, int] = field(factory=dict, init=False)
    """Requests that wait for an fsync, with the process each; who answers takes it out."""
    _signalled: dict[int, int] = field(factory=dict, init=False)
    """Those of them whose process got a signal meanwhile."""

    def __attrs_post_init__(self) -> None:
        self._notices = Notices(self.door.device)
        self._awake = Awake.chosen(self.door.options.awake)
        self.door.tree.reports["awake"] = self._awake.report
        self.door.tree.reports["uring"] = lambda: self._rings.running
        self._handled = self._handling()
        self._rings = Rings(self.door.device, self._notices, self._handling_in_rings(), self.stop)
        self.beside[self._wake] = partial(os.eventfd_read, self._wake)
        self.door.rings = self._rings.make
        self.door.changed = self._notices.changed
        self.door.watching = self._watch
        holes = self.door.files.holes
        holes.flush, holes.answer = self._flush, self._answer_sought

    def _watch(self, fd: int) -> None:
        """Have the changes behind the mount taken note of between requests."""
        self._watched = fd
        self.beside[fd] = self._read_changes
        self._poll.register(fd, select.POLLIN)

    def _read_changes(self) -> None:
        if not self.door.tree.coherence.read():
            self._poll.unregister(self._watched)
            self._listens_at = time.monotonic() + COLLECT_SECONDS

    def _listen(self, patience: float | None) -> float | None:
        """Wait for changes again when it is time for that; *patience*, or less until then."""
        left = self._listens_at - time.monotonic()
        if left > 0:
            return left if patience is None else min(patience, left)
        self._listens_at = 0.0
        self._poll.register(self._watched, select.POLLIN)
        return patience

    def _due(self) -> float | None:
        """For how many seconds at most to wait; None where nothing has to be done meanwhile."""
        patience, locks = self.door.served.patience(), self.door.files.locks
        if self._signalled or (locks is not None and locks.waiting):
            self._settle()
            patience = min(patience or AGAIN_SECONDS, AGAIN_SECONDS)
        if self._awake.held:
            patience = REST_SECONDS
        return self._listen(patience) if self._listens_at else patience

    def stop(self) -> None:
        """Have `run` return after the request that it is at. From any thread."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Wait for what is under way in other threads."""
        if self._pool is not None:
            self._pool.shutdown()
        # Before the rings, which answer those for whom the kernel keeps the notices waiting.
        self._notices.close()
        self._rings.stop()
        self._awake.close()
        os.close(self._wake)

    def run(self) -> None:
        """Serve until the mount is gone or `stop` is called."""
        device = self.door.device
        # A request that is taken back after poll has told of it must not be waited for.
        os.set_blocking(device, False)
        for fd in (device, *self.beside):
            self._poll.register(fd, select.POLLIN)
        if self._attend(self._is_negotiated):
            if self._rings.begin():
                self._attend(lambda: False)
            else:
                self._serve()

    def _is_negotiated(self) -> bool:
        return self.door.negotiated

    def _serve(self) -> None:
        """Read and answer, alone."""
        device, buffer = self.door.device, bytearray(_BUFFER)
        view = memoryview(buffer)
        request = Request(0, 0, 0, Caller(0, 0, 0), view)
        wait = self._poll.poll
        body = abi.IN_HEADER.size
        # Looked up once: each dot costs as much as a comparison.
        readv, handled, notices = os.readv, self._handled, self._notices
        buffers = [buffer]
        served, awake, due = self.door.served, self._awake, self._due
        while True:
            patience = due()
            if patience is None:
                events = wait()
            else:
                events = wait(math.ceil(1000 * patience))
                served.settle()
            if not events:
                awake.look()
                continue
            if events[0][0] != device or len(events) > 1:
                self._look_beside(events)
                if self._stopped:
                    return
                if all(fd != device for fd, _ in events):
                    continue
            try:
                length = readv(device, buffers)
            except OSError as error:
                if error.errno in abi.GONE:
                    return
                if error.errno in _PAUSED:
                    continue
                raise
            _, opcode, unique, node, uid, gid, pid, _ = _unpack_header(buffer)
            caller = request.caller
            if caller.pid != pid or caller.uid != uid or caller.gid != gid:
                request.caller = Caller(uid, gid, pid)
            request.opcode, request.unique, request.node = opcode, unique, node
            request.body = view[body:length]
            awake.asked()
            answer = handled(request)
            if answer is not None:
                code, reply = answer
                self._reply(unique, code, reply)
            if notices.waiting:
                notices.tell()

    def _attend(self, until: Callable[[], bool]) -> bool:
        """Read and answer in turns with the rings, *until* it is enough; False at the end.

        What is read then is what they bring about, so it is left to collect for a moment: for each
        a thread that serves would wait for this one.
        """
        door, served, rings, awake = self.door, self.door.served, self._rings, self._awake
        buffer = bytearray(_BUFFER)
        request = Request(0, 0, 0, Caller(0, 0, 0), memoryview(buffer))
        while not until():
            # Unknown until it is: who needs less has to say so.
            self._patience = None
            self._patience = patience = self._due()
            events = self._poll.poll(None if patience is None else math.ceil(1000 * patience))
            with rings.turn:
                if not events:
                    awake.look()
                served.settle()
                self._look_beside(events)
                if self._stopped:
                    return False
                if any(fd == door.device for fd, _ in events):
                    try:
                        length = os.readv(door.device, [buffer])
                    except OSError as error:
                        if error.errno in abi.GONE:
                            return False
                        if error.errno in _PAUSED:
                            continue
                        raise
                    self._attend_to(request, memoryview(buffer)[:length])
                    if self._stopped:
                        return False
                    if request.opcode not in _COLLECTED:
                        continue
            if rings.running:
                time.sleep(_PAUSE_SECONDS)
        return True

    def _attend_to(self, request: Request, told: memoryview) -> None:
        _, opcode, unique, node, uid, gid, pid, _ = _unpack_header(told)
        request.caller = Caller(uid, gid, pid)
        request.opcode, request.unique, request.node = opcode, unique, node
        request.body = told[abi.IN_HEADER.size :]
        answer = self._handled(request)
        if answer is not None:
            self._reply(unique, *answer)
            code, _ = answer
            if code and opcode == Opcode.INIT and not self.door.negotiated:
                # The kernel asks for nothing more, and has every call fail.
                self._stopped = True
                if code != errno.EPROTO:
                    raise OSError(code, os.strerror(code))
        self._rings.tell()

    def _handling(self) -> Handled:
        """What does what a request asks for."""
        door, debug = self.door, self.debug
        tree, counts, opcodes, unanswered = door.tree, door.counts, abi.OPCODES, abi.UNANSWERED
        handlers = door.handlers()
        handlers[Opcode.FSYNC] = None
        handlers[Opcode.INTERRUPT] = self._interrupt

        def handled(request: Request) -> Answer | None:
            opcode = request.opcode
            if debug:
                log.debug(
                    "%s of inode %d by %d, %d bytes", abi.opcode_name(opcode), request.node,
                    request.caller.pid, abi.IN_HEADER.size + len(request.body),
                )  # fmt: skip
            if opcode < opcodes:
                counts[opcode] += 1
                handler = handlers[opcode]
            else:
                handler = None
            code = 0
            reply: Reply = b""
            if handler is None:
                if opcode == Opcode.FSYNC:
                    self._sync(request)
                    return None
                code = errno.ENOSYS
            else:
                try:
                    reply = handler(request)
                except Later:
                    return None
                except Exception as failure:
                    code = _code(opcode, failure)
            if tree.forgotten:
                self._forget()
            return None if opcode in unanswered else (code, reply)

        return handled

    def _handling_in_rings(self) -> Handled:
        """The same in another thread than that of `run`, which may have to settle sooner then."""
        handled, patience_of, awake = self._handled, self.door.served.patience, self._awake

        def handled_in_ring(request: Request) -> Answer | None:
            awake.asked()
            answer = handled(request)
            patience = REST_SECONDS if awake.held else patience_of()
            if patience is not None and (self._patience is None or patience < self._patience):
                self._patience = patience
                os.eventfd_write(self._wake, 1)
            return answer

        return handled_in_ring

    def _look_beside(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            act = self.beside.get(fd)
            if act is not None:
                act()
        if self.door.tree.forgotten:
            self._forget()
        self._rings.tell()

    def _reply(self, unique: int, code: int, reply: Reply) -> None:
        head = _pack_header(_HEAD + len(reply), -code, unique)
        try:
            os.writev(self.door.device, (head, reply))
        except OSError as error:
            # ENOENT: nobody waits any more. The others: the mount is gone.
            if error.errno in (errno.ENOENT, *abi.GONE):
                return
            log.error("a reply of %d bytes was not taken: %s", len(reply), error)
            if not code:
                # Somebody waits for it.
                self._reply(unique, errno.EIO, b"")

    def _reply_late(self, unique: int, code: int, reply: bytes = b"") -> None:
        """Answer a request that was kept. From any thread."""
        if not self._rings.answer(unique, (code, reply)):
            self._reply(unique, code, reply)

    def _answer_sought(self, unique: int, work: Callable[[], bytes]) -> None:
        """Answer an LSEEK that was kept, unless it is kept once more."""
        code, reply = 0, b""
        try:
            reply = work()
        except Later:
            return
        except Exception as failure:
            code = _code(Opcode.LSEEK, failure)
        self._reply_late(unique, code, reply)

    def _flush(self, inode: int, start: int, length: int, then: Callable[[], None]) -> bool:
        """As `Notices.flush`; not with rings, which give a request back when it is answered."""
        return not self._rings.running and self._notices.flush(inode, start, length, then)

    def _forget(self) -> None:
        """Have the kernel forget what the tree says that it must, before it gets its answer."""
        forgotten = self.door.tree.forgotten
        epoch = self.door.epoch
        if epoch is not None:
            if epoch.begin():
                forgotten.clear()
            else:
                # From now on less is remembered; what was is forgotten a moment later.
                self.door.epoch, self.door.tree.forgets_at_once = None, False
        while forgotten:
            # By another thread: the kernel holds the directory while a request lasts.
            self._notices.drop(*forgotten.pop())

    def _sync(self, request: Request) -> None:
        try:
            work = self.door.files.syncing(request)
        except Exception as failure:
            self._reply_late(request.unique, _code(Opcode.FSYNC, failure))
            return
        self._syncs[request.unique] = request.caller.pid
        try:
            self._threads().submit(partial(self._answer, request.unique, work))
        except Exception:
            # No thread can be had. What is stored must not be told to be lost: all wait for it.
            self._answer(request.unique, work)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            # Imported here: many a mount ends without an fsync.
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(_WAITING, "fsync")
        return self._pool

    def _interrupt(self, request: Request) -> Reply:
        """Somebody who waits got a signal. Not answered, but perhaps the request that waits is.

        A lock may be interrupted by every signal. fsync(2) by none, but who is to die need not hear
        what came of it.
        """
        (unique,) = abi.INTERRUPT_IN.unpack_from(request.body)
        locks = self.door.files.locks
        if locks is not None and locks.waiting.pop(unique, None) is not None:
            self._reply_late(unique, errno.EINTR)
        elif unique in self._syncs:
            self._signalled[unique] = self._syncs[unique]
        return b""

    def _settle(self) -> None:
        """Answer those who wait for what has come meanwhile."""
        for unique, pid in list(self._signalled.items()):
            if unique not in self._syncs:
                del self._signalled[unique]
            elif is_dying(pid):
                del self._signalled[unique]
                if self._syncs.pop(unique, None) is not None:
                    self._reply_late(unique, errno.EINTR)
        if self.door.files.locks is not None:
            for unique, failure in self.door.files.locks.again():
                self._reply_late(unique, _code(Opcode.SETLKW, failure) if failure else 0)

    def _answer(self, unique: int, work: Callable[[], None]) -> None:
        if unique not in self._syncs:
            return
        code = 0
        try:
            work()
        except Exception as failure:
            code = _code(Opcode.FSYNC, failure)
        if self._syncs.pop(unique, None) is not None:
            self._reply_late(unique, code)


def is_dying(pid: int) -> bool:
    """Whether a thread has got a signal that ends it, and hears of nothing any more."""
    masks = {}
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                name, _, value = line.partition(b":")
                if name in _MASKS:
                    masks[name] = int(value, 16)
    except OSError:
        return False
    private, shared, blocked, ignored, caught = map(masks.__getitem__, _MASKS)
    return bool((private | shared) & ~(blocked | ignored | caught | _HARMLESS))


def _code(opcode: int, failure: Exception) -> int:
    """The guest's errno for what the handler of *opcode* has raised."""
    if isinstance(failure, _MALFORMED):
        return errno.EINVAL
    return errno_of(abi.opcode_name(opcode), failure)
