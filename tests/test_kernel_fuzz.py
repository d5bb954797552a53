"""Requests that no kernel would send, fed to the kernel door through a socket.

Whatever stands in them: each that wants an answer is answered once, the loop lives on, and nothing
outside of the roots is opened.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysroot_fs.fuse.kernel import abi
from sysroot_fs.fuse.kernel.abi import Init, Opcode
from sysroot_fs.fuse.kernel.door import Door
from sysroot_fs.fuse.kernel.loop import Loop
from sysroot_fs.fuse.options import FileOptions
from sysroot_fs.tree import Tree, TreeConfig

_UNANSWERED: Final = {
    Opcode.FORGET,
    Opcode.BATCH_FORGET,
    Opcode.NOTIFY_REPLY,
    Opcode.INTERRUPT,
}
_OFFERED: Final = 0x73FF_FFFB | Init.INIT_EXT
_OFFERED_MORE: Final = Init.PASSTHROUGH >> 32
_SO_SNDBUFFORCE: Final = 32
_SECRET: Final = b"nobody outside of the roots"


def packed(opcode: int, unique: int, node: int, body: bytes, length: int | None = None) -> bytes:
    """A request of root's; *length* is what its header says where that is not the truth."""
    size = abi.IN_HEADER.size + len(body)
    head = abi.IN_HEADER.pack(
        size if length is None else length, opcode, unique, node, 0, 0, os.getpid(), 0
    )
    return head + body


@attrs.define
class Peer:
    """Plays the kernel."""

    end: socket.socket
    unique: int = 2

    def ask(self, opcode: int, node: int, body: bytes, length: int | None = None) -> bytes | None:
        """Send a request; the reply, with which nothing else has come. None for no answer."""
        self.unique += 2
        self.end.send(packed(opcode, self.unique, node, body, length))
        if opcode in _UNANSWERED:
            return None
        return self.reply(self.unique)

    def reply(self, unique: int) -> bytes:
        """The reply to the request *unique*, which is the next one."""
        while True:
            data = self.end.recv(abi.MAX_WRITE + 4096)
            size, code, answered = abi.OUT_HEADER.unpack_from(data)
            assert size == len(data)
            if answered == 0:
                continue  # a notification
            assert answered == unique
            assert -4096 < code <= 0
            return data

    def value(self, opcode: int, node: int, body: bytes) -> bytes:
        """The body of the reply to a request that works."""
        data = self.ask(opcode, node, body)
        assert data is not None
        code = abi.OUT_HEADER.unpack_from(data)[1]
        assert code == 0, os.strerror(-code)
        return data[abi.OUT_HEADER.size :]

    def lives(self) -> None:
        """The next ordinary request is answered."""
        self.value(Opcode.GETATTR, abi.ROOT_ID, bytes(16))


@attrs.define
class Bench:
    """A door whose device is a socket, and the numbers of some inodes and handles."""

    peer: Peer
    top: Path
    nodes: list[int]


def serve(
    ours: socket.socket, theirs: socket.socket, top: Path, options: FileOptions
) -> Iterator[Bench]:
    """Have a door serve one end while the other is the kernel's."""
    tree = Tree(TreeConfig(sysroot=bytes(top / "sysroot"), host=bytes(top / "host")))
    loop = Loop(Door(tree, theirs.fileno(), lambda: None, options=options))
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    ours.settimeout(20)
    peer = Peer(ours)
    peer.value(Opcode.INIT, 0, abi.INIT_IN_EXT.pack(7, 45, 1 << 17, _OFFERED, _OFFERED_MORE))
    nodes = [abi.ROOT_ID]
    for parent, name in ((1, b"directory"), (0, b"file"), (1, b"out")):
        node = parent or nodes[-1]
        entry = peer.value(Opcode.LOOKUP, node, name + b"\0")
        nodes.append(abi.ENTRY_OUT.unpack_from(entry)[0])
    yield Bench(peer, top, nodes)
    loop.stop()
    thread.join(20)
    assert not thread.is_alive()
    loop.close()
    tree.close()


@pytest.fixture(
    scope="module",
    params=[FileOptions(), FileOptions(opens="passthrough", locks=True)],
    ids=["skipped", "opened"],
)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """A small volume of its own, so that no request fills the disk; a secret beside the roots."""
    top = tmp_path_factory.mktemp("fuzz")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", top], check=True)
    umask = os.umask(0o022)
    try:
        (top / "secret").write_bytes(_SECRET)
        for root in (top / "sysroot", top / "host"):
            (root / "directory").mkdir(parents=True)
            (root / "directory/file").write_text("content")
            (root / "out").symlink_to(top / "secret")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 * abi.MAX_WRITE)
        with ours, theirs:
            yield from serve(ours, theirs, top, request.param)
    finally:
        os.umask(umask)
        subprocess.run(["umount", "-l", top], check=True)


names = st.sampled_from(
    [
        b"file",
        b"directory",
        b"new",
        b"",
        b".",
        b"..",
        b"../secret",
        b"/",
        b"a/b",
        b"x" * 300,
        b"\xff",
    ]
)
numbers = st.one_of(
    st.integers(0, 8),
    st.sampled_from([1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 4096, 0o100644, 0o40755]),
    st.integers(0, (1 << 64) - 1),
)
bodies = st.one_of(
    st.binary(max_size=120),
    # Numbers as they stand in the structures, and names behind them.
    st.builds(
        lambda head, tail: b"".join(struct.pack("=Q", one) for one in head) + b"\0".join(tail),
        st.lists(numbers, max_size=8),
        st.lists(names, min_size=1, max_size=3).map(lambda some: [*some, b""]),
    ),
)
opcodes = st.one_of(
    st.sampled_from([one for one in Opcode if one is not Opcode.INIT]), st.integers(0, 5000)
)


@settings(
    max_examples=800,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    opcode=opcodes,
    which=st.one_of(st.integers(0, 3), st.none()),
    number=numbers,
    body=bodies,
    length=st.one_of(st.none(), st.integers(0, 1 << 32 - 1)),
)
def test_whatever_comes(
    bench: Bench, opcode: int, which: int | None, number: int, body: bytes, length: int | None
) -> None:
    """One answer or none, and the next request is served; what is outside is as it was."""
    node = number if which is None else bench.nodes[which]
    if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
        # The real ones: a kernel that forgets what it uses has only itself to blame.
        return
    reply = bench.peer.ask(opcode, node, body, length)
    bench.peer.lives()
    assert reply is None or _SECRET not in reply or opcode == Opcode.WRITE
    secret = bench.top / "secret"
    assert secret.read_bytes() == _SECRET and secret.stat().st_nlink == 1
    assert sorted(os.listdir(bench.top)) == ["host", "secret", "sysroot"]


def test_names_that_lead_elsewhere(bench: Bench) -> None:
    """No request takes them, wherever a name stands in it."""
    for name in (b"..", b".", b"", b"../secret", b"/etc", b"directory/file"):
        requests = [
            (Opcode.LOOKUP, name + b"\0"),
            (Opcode.UNLINK, name + b"\0"),
            (Opcode.RMDIR, name + b"\0"),
            (Opcode.MKDIR, abi.MKDIR_IN.pack(0o755, 0) + name + b"\0"),
            (Opcode.MKNOD, abi.MKNOD_IN.pack(stat.S_IFREG, 0, 0, 0) + name + b"\0"),
            (Opcode.CREATE, abi.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + name + b"\0"),
            (Opcode.SYMLINK, name + b"\0target\0"),
            (Opcode.LINK, abi.LINK_IN.pack(bench.nodes[2]) + name + b"\0"),
            (Opcode.RENAME, abi.RENAME_IN.pack(1) + b"directory\0" + name + b"\0"),
            (Opcode.RENAME2, abi.RENAME2_IN.pack(1, 0, 0) + name + b"\0new\0"),
        ]
        for opcode, body in requests:
            reply = bench.peer.ask(opcode, abi.ROOT_ID, body)
            assert reply is not None
            assert abi.OUT_HEADER.unpack_from(reply)[1] == -errno.EINVAL, (opcode, name)


def test_a_second_init_is_refused(bench: Bench) -> None:
    """The protocol is agreed on once."""
    body = abi.INIT_IN_EXT.pack(7, 45, 1 << 17, 0, 0)
    reply = bench.peer.ask(Opcode.INIT, 0, body)
    assert reply is not None and abi.OUT_HEADER.unpack_from(reply)[1] == -errno.EPROTO
    bench.peer.lives()


def test_an_fsync_without_a_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the fsync is done all the same, and everything goes on."""
    synced: list[int] = []

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    opened = bench.peer.ask(Opcode.OPEN, bench.nodes[2], abi.OPEN_IN.pack(os.O_RDONLY, 0))
    assert opened is not None
    skipped = len(opened) == abi.OUT_HEADER.size
    fh = 0 if skipped else abi.OPEN_OUT.unpack_from(opened, abi.OUT_HEADER.size)[0]
    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", refuse)
        patch.setattr(os, "fsync", synced.append)
        reply = bench.peer.ask(Opcode.FSYNC, bench.nodes[2], abi.FSYNC_IN.pack(fh, 0, 0))
    assert reply is not None and abi.OUT_HEADER.unpack_from(reply)[1] == 0
    assert len(synced) == 1
    bench.peer.lives()
