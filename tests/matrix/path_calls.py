"""The scenarios of paths: descriptors, links, dots, depth, watches, sockets and locks.

They are about what a path means to system calls, below the mount as in a plain directory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from tests.children import code_of, in_child
from tests.matrix.calls import Scenario, Where, told

__all__ = ["SCENARIOS"]

_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY


def write(path: bytes, text: bytes = b"text", at: int | None = None) -> None:
    fd = os.open(path, _CREATE, 0o644, dir_fd=at)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def read(path: bytes, at: int | None = None) -> bytes:
    with open(os.open(path, os.O_RDONLY, dir_fd=at), "rb") as file:
        return file.read()


def opened(path: bytes, flags: int) -> str:
    """Open and close; what kind of file it is."""
    fd = os.open(path, flags, 0o644)
    try:
        return oct(stat.S_IFMT(os.fstat(fd).st_mode))
    finally:
        os.close(fd)


def listed(path: bytes = b".") -> list[bytes]:
    return sorted(os.listdir(path))


def descriptors(where: Where) -> Iterator[str]:
    """Relative paths from directories' descriptors, of both layers, that are renamed meanwhile."""
    os.makedirs(b"a/b")
    os.mkdir(where.there + b"/c")
    here, far = os.open(b"a", os.O_RDONLY), os.open(where.there + b"/c", os.O_PATH)
    for at in (here, far):
        write(b"f", b"one", at)
        os.mkdir(b"D", dir_fd=at)
        write(b"D/F", b"two", at)
        os.rename(b"f", b"D/f", src_dir_fd=at, dst_dir_fd=at)
        yield told(read, b"D/f", at)
        yield told(read, b"D/../D/F", at)
        yield told(read, b"d/f", at)
        yield told(read, b"../a/D/f", at)
    yield told(read, where.there + b"/c/D/f", here)
    os.rename(b"a", b"A")
    os.rename(where.there + b"/c", where.there + b"/C")
    for at in (here, far):
        yield told(read, b"D/f", at)
        yield told(write, b"new", b"new", at)
        yield told(read, b"new", at)
        yield told(os.readlink, f"/proc/self/fd/{at}")
    yield f"listed: {listed(b'A')}, {listed(where.there + b'/C')}"
    os.fchdir(far)
    yield f"{os.getcwd()}: {listed()}"
    yield told(read, b"../C/new")


def dots(where: Where) -> Iterator[str]:
    """`.` and `..` and doubled slashes, through directories, files and what is not there."""
    os.makedirs(b"a/b/c")
    write(b"a/f")
    paths = [
        b"a/./f", b"a/b/../f", b"a/b/c/../../f", b"a//f", b"./a/b//..//f", b"a/f/.", b"a/f/..",
        b"a/nothing/../f", b"a/b/..", b"a/b/c/../../../a/f", b"a/f/../f", b"", b".", b"..",
        b"a/B/../f",
    ]  # fmt: skip
    for path in paths:
        yield told(lambda path: oct(stat.S_IFMT(os.lstat(path).st_mode)), path)
        yield told(opened, path, os.O_RDONLY)
    for path in (b".", b"..", b"a/.", b"a/b/.", b"a/b/..", b"a/b/c/"):
        yield told(os.mkdir, path)
        yield told(os.rmdir, path)
        yield told(os.unlink, path)
    for old, new in (
        (b"a", b"a/b/x"),
        (b"a", b"a"),
        (b"a/.", b"x"),
        (b"a", b"a/."),
        (b"a/b", b"a/.."),
    ):
        yield told(os.rename, old, new)
    # The parent that .. means is that of the moved directory.
    os.makedirs(b"x/y")
    os.chdir(b"x/y")
    os.rename(where.here + b"/x/y", where.here + b"/a/Y")
    yield f"{os.getcwd()}, above: {listed(b'..')}"
    os.rename(b"../../a", b"../../A")
    yield f"{os.getcwd()}, above: {listed(b'..')}"


def trailing_slashes(where: Where) -> Iterator[str]:
    """What a slash at the end asks for, of files, directories, links and what is not there."""
    os.mkdir(b"d")
    write(b"f")
    for name in (b"d", b"f", b"nothing"):
        path = name + b"/"
        yield told(opened, path, os.O_RDONLY)
        yield told(opened, path, _CREATE)
        yield told(opened, path, os.O_CREAT | os.O_RDWR)
        yield told(os.access, path, os.F_OK)
        yield told(os.unlink, path)
        yield told(os.mkdir, path)
        yield told(os.rename, path, b"moved")
        yield told(os.rename, b"f", path)
        yield f"listed: {listed()}"
    for path in (b"new/", b"new//"):
        yield told(os.mkdir, path)
        yield told(os.rename, b"new", b"NEW/")
        yield told(os.rmdir, b"NEW/")


def trailing_slashes_of_links(where: Where) -> Iterator[str]:
    """The same of links to a directory, to a file and to nothing, also in the other layer."""
    os.mkdir(b"d")
    write(b"f")
    os.mkdir(where.there + b"/D")
    for number, target in enumerate((b"d", b"f", b"nothing", where.there + b"/D")):
        link = b"l%d" % number
        os.symlink(target, link)
        for path in (link, link + b"/", link + b"/."):
            yield told(lambda path: oct(stat.S_IFMT(os.lstat(path).st_mode)), path)
            yield told(opened, path, os.O_RDONLY)
            yield told(opened, path, os.O_RDONLY | os.O_NOFOLLOW)
            yield told(os.mkdir, path)
            yield told(os.rmdir, path)
        yield told(os.unlink, link + b"/")
        yield told(os.rename, link + b"/", b"x")
        yield told(opened, link, os.O_CREAT | os.O_WRONLY)
        yield told(os.link, b"f", link)
    yield f"listed: {listed()}"


def links(where: Where) -> Iterator[str]:
    """Chains of 40 links and of 41, loops, links across the layers and to other spellings."""
    write(b"end", b"the end")
    for number in range(42):
        os.symlink(b"l%d" % (number - 1) if number else b"end", b"l%d" % number)
    for number in (0, 1, 38, 39, 40, 41):
        yield told(read, b"l%d" % number)
    os.symlink(b"loop", b"loop")
    os.symlink(b"pong", b"ping")
    os.symlink(b"ping", b"pong")
    for path in (b"loop", b"ping", b"loop/x"):
        yield told(read, path)
        yield told(opened, path, _CREATE)
        yield told(os.readlink, path)
    write(where.there + b"/F", b"far")
    os.symlink(where.there + b"/F", b"absolute")
    os.symlink(where.here + b"/end", where.there + b"/back")
    os.symlink(where.there + b"/back", b"there-and-back")
    os.symlink(where.there, b"directory")
    os.symlink(b"../" + os.path.basename(where.there), b"relative")
    back = b"relative/../" + os.path.basename(where.here) + b"/end"
    for path in (
        b"absolute",
        b"there-and-back",
        b"directory/F",
        b"relative/F",
        b"relative/f",
        back,
    ):
        yield told(read, path)
    os.symlink(b"END", b"wrong")
    os.symlink(b"End", b"END")
    yield told(read, b"wrong")
    write(b"End", b"another end")
    yield told(read, b"wrong")
    yield told(os.readlink, b"END")
    os.symlink(b"made", b"maker")
    yield told(opened, b"maker", os.O_CREAT | os.O_WRONLY)
    yield told(opened, b"maker", _CREATE)
    yield f"listed: {listed()}"


def targets(where: Where) -> Iterator[str]:
    """What a link is made with is what it gives back, however long and odd it is."""
    odd = b"\n .ef=466f6f\t"
    for target in (
        b"x" * 255,
        b"y" * 4095,
        "\u00e9e\u0301".encode(),
        odd,
        b"a//b/./../c/",
        b"A:\\*",
    ):
        os.symlink(target, b"target")
        yield f"{len(target)}: {os.readlink(b'target') == target}, {os.lstat(b'target').st_size}"
        yield told(read, b"target")
        os.unlink(b"target")
    yield told(os.symlink, b"z" * 4096, b"target")
    yield told(os.symlink, b"", b"target")
    yield f"listed: {listed()}"


def ill_formed_targets(where: Where) -> Iterator[str]:
    """Also where it is no UTF-8."""
    for target in (b"\xff", b"caf\xe9/\xed\xa0\x80"):
        yield told(os.symlink, target, b"target")
        yield told(os.readlink, b"target")
        yield told(os.unlink, b"target")


def deep(where: Where) -> Iterator[str]:
    """A path longer than PATH_MAX, made and left step by step, in names that collide."""
    names = [b"d" * 40, b"D" * 40, b"x" * 39 + b"X"]
    for number in range(120):
        for name in names[:2]:
            os.mkdir(name)
        os.chdir(names[number % 2])
    write(b"f", b"deep")
    write(b"F", b"DEEP")
    yield f"{read(b'f')!r}, {read(b'F')!r}, {listed()}"
    yield told(os.readlink, "/proc/self/cwd")
    yield told(
        read, b"../" * 10 + b"/".join(names[number % 2] for number in range(110, 120)) + b"/f"
    )
    yield told(read, b"./" * 2040 + b"f")
    yield told(read, b"./" * 2048 + b"f")
    os.unlink(b"f")
    os.unlink(b"F")
    for _ in range(120):
        os.chdir(b"..")
        for name in names[:2]:
            os.rmdir(name)
    yield f"{os.getcwd()}: {listed()}"


def working_directories(where: Where) -> Iterator[str]:
    """getcwd where the directory is renamed, by this process and by another, in both layers."""
    for top in (where.here, where.there):
        os.makedirs(top + b"/one/Two")
        os.chdir(top + b"/one/Two")
        yield os.getcwd()
        os.rename(top + b"/one", top + b"/ONE")
        yield os.getcwd()
        in_child(partial(os.rename, top + b"/ONE/Two", top + b"/ONE/two"))
        yield os.getcwd()
        os.mkdir(b"../Two")
        write(b"../Two/f")
        yield f"{os.getcwd()}: {listed()}, {listed(b'../Two')}"
        os.chdir(b"../Two")
        yield f"{os.getcwd()}: {listed()}, {os.readlink('/proc/self/cwd')}"
        os.rename(top + b"/ONE/Two", top + b"/moved")
        yield f"{os.getcwd()}: {listed(b'..')}"


def removed_working_directory(where: Where) -> Iterator[str]:
    """In a directory that was removed nothing is found or made, and there is no name for it."""
    for top in (where.here, where.there):
        os.mkdir(top + b"/gone")
        os.chdir(top + b"/gone")
        os.rmdir(top + b"/gone")
        yield told(os.getcwd)
        yield told(write, b"f")
        yield told(os.mkdir, b"d")
        yield told(read, b"f")
        yield told(os.listdir, b".")
        os.mkdir(top + b"/gone")
        write(top + b"/gone/f")
        yield told(os.getcwd)
        yield told(read, b"f")
        yield told(read, top + b"/gone/f")


_MASK: Final = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
_EVENTS: Final = {
    0x2: "modify", 0x4: "attrib", 0x8: "close-write", 0x40: "moved-from", 0x80: "moved-to",
    0x100: "create", 0x200: "delete", 0x400: "delete-self", 0x800: "move-self",
}  # fmt: skip


def _events(watch: int) -> Iterator[str]:
    """What the watch has seen: kind and name of each event, those that repeat once."""
    last = ""
    while select.select([watch], [], [], 0)[0]:
        data = os.read(watch, 65536)
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0")
            data = data[16 + length :]
            line = f"{_EVENTS.get(mask & _MASK, hex(mask))} {name!r}"
            if line != last:
                yield line
            last = line


def watches(where: Where) -> Iterator[str]:
    """Events carry the names that were asked for, whatever they are stored under."""
    library = ctypes.CDLL(None, use_errno=True)
    for top in (where.here, where.there):
        os.mkdir(top + b"/Dir")
        os.mkdir(top + b"/dir")
        watch = library.inotify_init1(os.O_NONBLOCK)
        for name in (b"/Dir", b"/dir"):
            yield f"watch {name!r}: {library.inotify_add_watch(watch, top + name, _MASK) > 0}"
        for name in (b"Makefile", b"makefile", b"\xff", b"L" * 255, b"l" * 255):
            write(top + b"/Dir/" + name)
            write(top + b"/dir/" + name)
        yield from _events(watch)
        os.rename(top + b"/Dir/makefile", top + b"/Dir/MAKEFILE")
        os.rename(top + b"/Dir/Makefile", top + b"/dir/mAKEFILE")
        os.unlink(top + b"/Dir/" + b"L" * 255)
        os.rename(top + b"/Dir", top + b"/DIR")
        write(top + b"/DIR/new")
        yield from _events(watch)
        os.close(watch)


def _answered(path: bytes) -> bytes:
    """What the server at a socket says."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return client.recv(100)


def sockets(where: Where) -> Iterator[str]:
    """Two servers at names that collide, in both layers; a name in the longest path that fits."""
    for top in (where.here, where.there):
        os.chdir(top)
        servers = []
        for name in (b"sock", b"Sock", b"n" * 107):
            server = socket.socket(socket.AF_UNIX)
            yield told(server.bind, name)
            server.listen()
            servers.append(server)
        with socket.socket(socket.AF_UNIX) as late:
            yield told(late.bind, b"sock")
            yield told(late.bind, b"SOCK")
        for server, name in zip(servers, (b"sock", b"Sock", b"n" * 107), strict=True):
            with socket.socket(socket.AF_UNIX) as client:
                yield told(client.connect, name)
                accepted, _ = server.accept()
                accepted.sendall(name)
                accepted.close()
                yield f"{client.recv(200)!r} from {client.getpeername()!r}"
        yield f"listed: {listed()}, {stat.S_ISSOCK(os.lstat(b'Sock').st_mode)}"
        os.unlink(b"sock")
        yield told(_answered, b"sock")
        os.rename(b"Sock", b"sock")
        yield told(_answered, b"Sock")
        with socket.socket(socket.AF_UNIX) as client:
            yield told(client.connect, b"sock")
        for server in servers:
            server.close()
        yield told(_answered, b"sock")
        yield f"listed: {listed()}"


def fifos(where: Where) -> Iterator[str]:
    """Two fifos whose names collide carry what was written to each."""
    for top in (where.here, where.there):
        os.chdir(top)
        for name in (b"pipe", b"Pipe"):
            os.mkfifo(name)
        readers = [os.open(name, os.O_RDONLY | os.O_NONBLOCK) for name in (b"pipe", b"Pipe")]
        for name in (b"Pipe", b"pipe"):
            writer = os.open(name, os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, name)
            os.close(writer)
        yield f"read: {[os.read(reader, 100) for reader in readers]}"
        yield told(opened, b"PIPE", os.O_RDONLY | os.O_NONBLOCK)
        os.unlink(b"pipe")
        writer = os.open(b"Pipe", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"once more")
        yield f"read: {os.read(readers[1], 100)!r}, listed: {listed()}"


def locks(where: Where) -> Iterator[str]:
    """A lock on one of two names that collide is not one on the other, whoever asks."""
    for top in (where.here, where.there):
        os.chdir(top)
        for name in (b"lock", b"Lock"):
            write(name)
        with open(b"lock", "rb+") as whole, open(b"Lock", "rb+") as part:
            fcntl.flock(whole, fcntl.LOCK_EX)
            fcntl.lockf(part, fcntl.LOCK_EX, 2, 1)
            yield f"{in_child(_taken)}"
            os.rename(b"lock", b"LOCK")
            os.rename(b"Lock", b"lock")
            os.rename(b"LOCK", b"Lock")
            yield f"exchanged: {in_child(_taken)}"
        yield f"let go: {in_child(_taken)}"


def _taken() -> list[str]:
    """Which locks another process can have: the whole file's, the first byte's, the third's."""
    found = []
    for name in (b"lock", b"Lock"):
        with open(name, "rb+") as file:
            tries: tuple[Callable[[], None], ...] = (
                partial(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB),
                partial(fcntl.lockf, file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0),
                partial(fcntl.lockf, file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2),
            )
            found += [errno.errorcode.get(code_of(call), "yes") for call in tries]
    return found


def _mapped(what: str) -> str:
    """The path of the library *what* in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split(maxsplit=5)[5] for line in lines if what in line)


def loads(path: str) -> bool:
    """Whether there is a library at *path*."""
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True


def libraries(where: Where) -> Iterator[str]:
    """A library is loaded by its name, which is what /proc/self/maps then shows."""
    ctypes.CDLL("libm.so.6")
    source = _mapped("/libm.so")
    for top in (where.here, where.there):
        os.chdir(top)
        for name in ("libx.so", "LibX.so", "libwrong.so"):
            shutil.copyfile(source, name)
        os.rename("libwrong.so", "libX.so")
        for name in ("LibX.so", "libX.so"):
            library = ctypes.CDLL(os.path.join(os.fsdecode(top), name))
            library.cos.restype = ctypes.c_double
            yield f"{library.cos(ctypes.c_double(0))} by {_mapped(name)}"
        yield told(loads, os.path.join(os.fsdecode(top), "LIBX.so"))


def mappings(where: Where) -> Iterator[str]:
    """Two names that collide are mapped at once, shared and private, and stay apart."""
    for top in (where.here, where.there):
        os.chdir(top)
        for name in (b"map", b"Map"):
            write(name, name * 1000)
        with open(b"map", "rb+") as one, open(b"Map", "rb+") as other:
            shared = mmap.mmap(one.fileno(), 0)
            private = mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_COPY)
            shared[0:3] = b"NEW"
            private[0:3] = b"OWN"
            os.rename(b"map", b"MAP")
            shared.flush()
            yield f"{read(b'MAP')[:6]!r} {read(b'Map')[:6]!r} {private[:6]!r}"
            os.unlink(b"MAP")
            shared[3:6] = b"end"
            yield f"{shared[:9]!r}, listed: {listed()}"


SCENARIOS: Final = (
    Scenario.of(descriptors),
    Scenario.of(dots),
    Scenario.of(trailing_slashes),
    Scenario.of(trailing_slashes_of_links, "symlinks", "hard-links"),
    Scenario.of(links, "symlinks"),
    Scenario.of(targets, "symlinks"),
    Scenario.of(ill_formed_targets, "symlinks", "any-targets"),
    Scenario.of(deep),
    Scenario.of(working_directories),
    Scenario.of(removed_working_directory, "removed-directories"),
    Scenario.of(watches),
    Scenario.of(sockets, "special-files"),
    Scenario.of(fifos, "special-files"),
    Scenario.of(locks),
    Scenario.of(libraries),
    Scenario.of(mappings),
)
