"""One io_uring with a few entries of one queue of the connection: linux/io_uring.h in plain memory.

An entry is a place for one request and its reply. It is given to the kernel when it is registered
and with each reply, and comes back with the next request. A ring belongs to the thread that makes
it: nobody else may use it, save for `ring_bell`.

The kernel works on the ring only while its thread is in `enter` (DEFER_TASKRUN), so nothing here
has to be ordered against it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
from struct import Struct
from typing import Final

from attrs import define, field

from sidecar import io_uring
from sidecar.twin import Caller
from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.request import Reply, Request

ENTRIES: Final = 16
"""Requests of one processor that are under way at once; fsync keeps one until it is done."""

_SETUP_CQSIZE: Final = 1 << 3
_SETUP_SUBMIT_ALL: Final = 1 << 7
_SETUP_SQE128: Final = 1 << 10
_SETUP_SINGLE_ISSUER: Final = 1 << 12
_SETUP_DEFER_TASKRUN: Final = 1 << 13
_SETUP: Final = (
    _SETUP_CQSIZE | _SETUP_SUBMIT_ALL | _SETUP_SQE128 | _SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN
)
_OP_POLL_ADD: Final = 6
_OP_URING_CMD: Final = 46
_OFFSET_SQES: Final = 0x10000000

_PARAMS: Final = Struct("=IIII24x" + 2 * "IIIIIIIIQ")
# struct io_uring_params: sq_entries cq_entries flags sq_thread_cpu, then the offsets in the ring,
# of submissions: head tail ring_mask ring_entries flags dropped array resv1 user_addr,
# of completions: head tail ring_mask ring_entries overflow cqes flags resv1 user_addr
_SQE: Final = Struct("=BBHiIIQIIQQ")
# opcode flags ioprio fd cmd_op pad addr len poll_events user_data and buf_index to splice_fd;
# then the command
_SQE_SIZE: Final = 128
_COMMIT_ID: Final = 7
"""The word of a submission in which a command says which request it answers."""
_RING_WORDS: Final = _SQE_SIZE // 8
_CQE_SIZE: Final = 16
_NEGATIVE: Final = 1 << 31
_FULL: Final = 0xFFFF_FFFF

_PAGE: Final = mmap.PAGESIZE
_PAYLOAD: Final = 2 * _PAGE
"""Where what follows the headers begins; the opcode's structure is put right before it."""
_OPERATION: Final = abi.IO_URING_OPERATION
_ENTRY: Final = abi.IO_URING_ENTRY
_IN_HEADER: Final = abi.IN_HEADER.size
_HEAD: Final = abi.OUT_HEADER.size

_unpack_header = abi.IN_HEADER.unpack_from
_unpack_entry = abi.IO_URING_ENT.unpack_from
_pack_header = abi.OUT_HEADER.pack_into
_pack_entry = abi.IO_URING_ENT.pack_into


def _address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@define(slots=True, eq=False)
class Ring:
    """The ring of *queue*, the number of a processor, on *device*. Raises OSError for none."""

    device: int
    queue: int
    fd: int = field(init=False)
    bell: int = field(init=False)
    """Can be read when another thread has something for this one."""
    alive: int = field(default=ENTRIES, init=False)
    """How many entries the kernel has not refused."""
    refused: int = field(default=0, init=False)
    """The errno with which it has, the first time."""
    _pending: int = field(default=0, init=False)
    _tail: int = field(default=0, init=False)
    _head: int = field(default=0, init=False)
    _entries: list[memoryview] = field(factory=list, init=False)
    _buffers: list[ctypes.Array[ctypes.c_uint64]] = field(factory=list, init=False)
    """What the kernel is told of them: address and length of the headers and of the rest."""
    _submissions: mmap.mmap = field(init=False)
    _commands: memoryview = field(init=False)
    """The same, as words of 8 bytes."""
    _memory: mmap.mmap = field(init=False)
    _words: memoryview = field(init=False)
    """The ring as words of 4 bytes, and as such of 8 bytes."""
    _long_words: memoryview = field(init=False)
    _sq_tail: int = field(init=False)
    _sq_array: int = field(init=False)
    _sq_mask: int = field(init=False)
    _cq_head: int = field(init=False)
    _cq_tail: int = field(init=False)
    _cqes: int = field(init=False)
    _cq_mask: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        # Twice as many as there are entries: the bell is one.
        submissions = 2 * ENTRIES
        params = (ctypes.c_char * _PARAMS.size)()
        _PARAMS.pack_into(params, 0, 0, 2 * submissions, _SETUP, 0, *[0] * 18)
        self.fd = io_uring.setup(submissions, params)
        try:
            self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            os.close(self.fd)
            raise
        try:
            self._map(_PARAMS.unpack(params))
        except OSError:
            os.close(self.fd)
            os.close(self.bell)
            raise

    def _map(self, params: tuple[int, ...]) -> None:
        sq_entries, cq_entries = params[:2]
        sq, cq = params[4:13], params[13:]
        length = max(sq[6] + 4 * sq_entries, cq[5] + _CQE_SIZE * cq_entries)
        self._memory = mmap.mmap(self.fd, length & ~7)
        self._words = memoryview(self._memory).cast("I")
        self._long_words = memoryview(self._memory).cast("Q")
        self._submissions = mmap.mmap(self.fd, _SQE_SIZE * sq_entries, offset=_OFFSET_SQES)
        self._commands = memoryview(self._submissions).cast("Q")
        self._sq_tail, self._sq_array, self._sq_mask = sq[1] // 4, sq[6] // 4, sq_entries - 1
        self._cq_head, self._cq_tail, self._cq_mask = cq[0] // 4, cq[1] // 4, cq_entries - 1
        self._cqes = cq[5] // 8
        for _ in range(ENTRIES):
            memory = mmap.mmap(-1, _PAYLOAD + abi.MAX_WRITE)
            start = _address(memory)
            self._buffers.append(
                (ctypes.c_uint64 * 4)(start, _PAGE, start + _PAYLOAD, abi.MAX_WRITE)
            )
            self._entries.append(memoryview(memory))

    def close(self) -> None:
        """Let go of it, and with it of the device."""
        for view in (self._words, self._long_words, self._commands):
            view.release()
        for memory in (self._memory, self._submissions):
            # It has a descriptor of its own.
            memory.close()
        os.close(self.fd)
        os.close(self.bell)

    def register(self) -> None:
        """Give the entries to the kernel, with the next `enter`."""
        for index, buffers in enumerate(self._buffers):
            self._prepare(index, abi.IO_URING_REGISTER, ctypes.addressof(buffers), 2)
            self._submit(index)
        # With a length of 1: once and for all.
        _SQE.pack_into(
            self._submissions, ENTRIES * _SQE_SIZE,
            _OP_POLL_ADD, 0, 0, self.bell, 0, 0, 0, 1, select.POLLIN, ENTRIES, 0,
        )  # fmt: skip
        self._submit(ENTRIES)
        self.enter(wait=False)
        # From now on an entry's submission is the same but for the request.
        for index in range(ENTRIES):
            self._prepare(index, abi.IO_URING_COMMIT_AND_FETCH, 0, 0)

    def _prepare(self, index: int, command: int, address: int, length: int) -> None:
        start = index * _SQE_SIZE
        _SQE.pack_into(
            self._submissions, start,
            _OP_URING_CMD, 0, 0, self.device, command, 0, address, length, 0, index, 0,
        )  # fmt: skip
        abi.IO_URING_COMMAND.pack_into(self._submissions, start + _SQE.size, 0, 0, self.queue)

    def _submit(self, index: int) -> None:
        tail = self._tail
        words = self._words
        words[self._sq_array + (tail & self._sq_mask)] = index
        words[self._sq_tail] = self._tail = (tail + 1) & _FULL
        self._pending += 1

    def enter(self, wait: bool) -> None:
        """Hand over the replies, and with *wait* wait for something to come."""
        pending, self._pending = self._pending, 0
        try:
            io_uring.enter(self.fd, pending, wait)
        except InterruptedError:
            # Whoever waits looks for himself, and comes back.
            return

    def next(self, request: Request) -> int | None:
        """Hand over the replies, and put what has come into *request*; waits until something has.

        The number of the entry, `ENTRIES` for the bell, or None where the kernel uses none of them
        any more. The request's body lasts until the answer.
        """
        words = self._words
        while True:
            head = self._head
            if head == words[self._cq_tail]:
                if not self.alive:
                    return None
                self.enter(wait=True)
                continue
            at = self._cqes + 2 * (head & self._cq_mask)
            index, result = self._long_words[at], self._long_words[at + 1]
            words[self._cq_head] = self._head = (head + 1) & _FULL
            if result & _NEGATIVE:
                self.refused = self.refused or (1 << 32) - (result & _FULL)
                self.alive -= 1
                continue
            if index < ENTRIES:
                break
            return index
        entry = self._entries[index]
        length, opcode, unique, node, uid, gid, pid, _ = _unpack_header(entry)
        _, commit, size, _ = _unpack_entry(entry, _ENTRY)
        start = _PAYLOAD + _IN_HEADER + size - length
        if start < _PAYLOAD:
            entry[start:_PAYLOAD] = entry[_OPERATION : _OPERATION + _PAYLOAD - start]
        self._commands[index * _RING_WORDS + _COMMIT_ID] = commit
        caller = request.caller
        if caller.pid != pid or caller.uid != uid or caller.gid != gid:
            request.caller = Caller(uid, gid, pid)
        request.opcode, request.unique, request.node = opcode, unique, node
        request.body = entry[start : _PAYLOAD + size]
        return index

    def answer(self, index: int, unique: int, code: int, reply: Reply) -> None:
        """Put the answer to a request into its entry, which is handed over later."""
        entry = self._entries[index]
        length = len(reply)
        if length:
            entry[_PAYLOAD : _PAYLOAD + length] = reply
        _pack_header(entry, 0, _HEAD + length, -code, unique)
        _pack_entry(entry, _ENTRY, 0, 0, length, 0)
        self._submit(index)

    def silence(self) -> None:
        """The bell was heard; perhaps more than once for one time that it is silenced."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def ring_bell(self) -> None:
        """Have its thread look for what others have for it. From any thread."""
        os.eventfd_write(self.bell, 1)
