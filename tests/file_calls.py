"""What programs do with open files; each is to be the same through a mount and on a plain disk.

Each is done to a file "f" of three pages in a directory of its own (`prepared`), and returns what
can be compared.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sidecar import linux
from tests.children import code_of, in_child

_PAGE: Final = mmap.PAGESIZE


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor of *path*."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def prepared(place: Path) -> None:
    """Make the directory in which one of `ACTS` is done."""
    place.mkdir()
    (place / "f").write_bytes(bytes(range(256)) * (3 * _PAGE // 256))


def described(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What is in a directory: mode, links, size and content of each."""
    return {
        path.name: (seen.st_mode, seen.st_nlink, seen.st_size, path.read_bytes())
        for path in place.iterdir()
        for seen in [path.stat()]
    }


def reads(place: Path) -> object:
    """Everywhere, and past the end."""
    with opened(place / "f", os.O_RDONLY) as fd:
        return [os.pread(fd, 10, at) for at in (0, _PAGE - 5, 3 * _PAGE - 5, 3 * _PAGE)]


def writes(place: Path) -> object:
    """In the middle and past the end; the size is there at once, for everybody."""
    with opened(place / "f", os.O_RDWR) as fd:
        done = os.pwrite(fd, b"middle", 100), os.pwrite(fd, b"end", 5 * _PAGE)
        return done, os.fstat(fd).st_size, os.stat(place / "f").st_size, os.pread(fd, 8, 98)


def appends(place: Path) -> object:
    """Two descriptors in turn, and one that is told to later."""
    append = os.O_WRONLY | os.O_APPEND
    with opened(place / "f", append) as one, opened(place / "f", append) as two:
        for fd in (one, two, one):
            os.write(fd, b"%d" % (fd == one))
        os.pwrite(one, b"not at the start", 0)
    with opened(place / "f", os.O_WRONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"last")
    return (place / "f").read_bytes()[3 * _PAGE :]


def truncates(place: Path) -> object:
    """By descriptor, by name and by open, shorter and longer."""
    sizes = []
    with opened(place / "f", os.O_RDWR) as fd:
        os.ftruncate(fd, 10)
        sizes.append((os.fstat(fd).st_size, os.pread(fd, 20, 0)))
        os.truncate(place / "f", 20)
        sizes.append((os.fstat(fd).st_size, os.pread(fd, 30, 0)))
        os.close(os.open(place / "f", os.O_WRONLY | os.O_TRUNC))
        sizes.append((os.fstat(fd).st_size, os.pread(fd, 20, 0)))
        os.pwrite(fd, b"x", 5)
    return sizes, (place / "f").read_bytes()


def goes_around_the_cache(place: Path) -> object:
    """O_DIRECT takes what is aligned, and others see it."""
    with mmap.mmap(-1, _PAGE) as block, opened(place / "f", os.O_RDWR | os.O_DIRECT) as fd:
        block[:] = b"d" * _PAGE
        done = os.pwritev(fd, [block], _PAGE)
        back = os.preadv(fd, [block], 0)
        return done, back, block[:20], (place / "f").read_bytes()[_PAGE - 3 : _PAGE + 3]


def maps(place: Path) -> object:
    """Through a map others' writes are seen, and theirs through files; it outlives its file."""
    with opened(place / "f", os.O_RDWR) as fd:
        memory = mmap.mmap(fd, 0)
        os.pwrite(fd, b"written", 10)
        seen = memory[8:20]
        memory[_PAGE : _PAGE + 6] = b"mapped"
        read = os.pread(fd, 10, _PAGE - 2)
    memory[0:3] = b"yes"
    after = (place / "f").read_bytes()[:5]
    memory.flush()
    memory.close()
    return seen, read, after


def maps_to_read(place: Path) -> object:
    """What was opened to be read is not mapped to be written, but privately it is."""
    with opened(place / "f", os.O_RDONLY) as fd:
        refused = code_of(mmap.mmap, fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as own:
            own[0:4] = b"mine"
        return refused, os.pread(fd, 4, 0)


def has_two_names(place: Path) -> object:
    """Opened under one, written under the other."""
    os.link(place / "f", place / "g")
    with opened(place / "f", os.O_RDONLY) as one, opened(place / "g", os.O_WRONLY) as two:
        os.pwrite(two, b"linked", 3 * _PAGE)
        sizes = os.fstat(one).st_size, os.stat(place / "f").st_size, os.stat(place / "g").st_size
        return sizes, os.pread(one, 6, 3 * _PAGE), os.fstat(one).st_nlink


def is_replaced(place: Path) -> object:
    """Who has it open keeps it; the name means the other."""
    (place / "other").write_text("another")
    with opened(place / "f", os.O_RDWR) as fd:
        os.rename(place / "other", place / "f")
        os.pwrite(fd, b"old", 0)
        return os.pread(fd, 5, 0), os.fstat(fd).st_nlink, (place / "f").read_bytes()


def is_removed(place: Path) -> object:
    """Who has it open reads, writes, measures, shortens, syncs and maps it."""
    with opened(place / "f", os.O_RDWR) as fd:
        os.unlink(place / "f")
        os.pwrite(fd, b"more", 3 * _PAGE)
        os.ftruncate(fd, 3 * _PAGE + 2)
        os.fsync(fd)
        with mmap.mmap(fd, 0) as memory:
            memory[0:4] = b"gone"
        return os.pread(fd, 6, 0), os.fstat(fd).st_size, os.fstat(fd).st_nlink


def has_holes(place: Path) -> object:
    """Allocated, punched, copied."""
    with opened(place / "f", os.O_RDWR) as fd:
        linux.fallocate(fd, 0, 0, 8 * _PAGE)
        linux.fallocate(fd, 0x03, 0, _PAGE)
        copied = os.copy_file_range(fd, fd, 100, _PAGE, 6 * _PAGE)
        return copied, os.fstat(fd).st_size, os.pread(fd, 10, 6 * _PAGE), os.pread(fd, 4, 0)


def is_searched_for_holes(place: Path) -> object:
    """What is behind one is found."""
    with opened(place / "f", os.O_RDWR) as fd:
        linux.fallocate(fd, 0x03, 0, _PAGE)
        os.fsync(fd)
        return os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, _PAGE, os.SEEK_HOLE)


def is_synced(place: Path) -> object:
    """O_SYNC and the calls that wait."""
    with opened(place / "f", os.O_WRONLY | os.O_SYNC) as fd:
        done = os.write(fd, b"synced")
        os.fdatasync(fd)
        os.fsync(fd)
    return done, code_of(os.posix_fadvise, 0, 0, 0, os.POSIX_FADV_DONTNEED)


def is_sent(place: Path) -> object:
    """sendfile(2) and splice(2), out of it and into it."""
    reader, writer = os.pipe()
    with opened(place / "f", os.O_RDWR) as fd:
        out = os.sendfile(writer, fd, 5, 10), os.read(reader, 20)
        os.write(writer, b"spliced")
        into = os.splice(reader, fd, 7, offset_dst=0)
        back = os.splice(fd, writer, 7, offset_src=0), os.read(reader, 20)
    os.close(reader)
    os.close(writer)
    return out, into, back


def comes_without_a_name(place: Path) -> object:
    """O_TMPFILE, written, named, and opened once more."""
    with opened(place, os.O_TMPFILE | os.O_RDWR, 0o600) as fd:
        os.write(fd, b"nameless")
        with opened(place, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.link(f"/proc/self/fd/{fd}", "g", dst_dir_fd=directory, follow_symlinks=True)
        with opened(place / "g", os.O_WRONLY | os.O_APPEND) as again:
            os.write(again, b" no more")
        return os.pread(fd, 20, 0), os.fstat(fd).st_size


def is_executed(place: Path) -> object:
    """What was just written is run, not while it is open for writing."""
    (place / "program").write_bytes(Path("/bin/true").read_bytes())
    (place / "program").chmod(0o755)
    with opened(place / "program", os.O_WRONLY):
        busy = code_of(subprocess.run, [place / "program"], check=True)
    return busy, subprocess.run([place / "program"], check=True).returncode


def meets_its_limit(place: Path) -> object:
    """RLIMIT_FSIZE is the writer's."""

    def write() -> tuple[int, int, int]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * _PAGE, 4 * _PAGE))
        with opened(place / "f", os.O_WRONLY) as fd:
            short = os.pwrite(fd, bytes(2 * _PAGE), 3 * _PAGE)
            return short, code_of(os.pwrite, fd, b"x", 4 * _PAGE), os.fstat(fd).st_size

    return in_child(write)


def belongs_to_one_who_only_writes(place: Path) -> object:
    """Mode 0200: its owner writes it and may not read it, whoever the server is."""
    os.chown(place / "f", 1000, 1000)
    os.chmod(place / "f", 0o200)

    def use() -> tuple[object, ...]:
        with opened(place / "f", os.O_WRONLY) as fd:
            done = os.pwrite(fd, b"blind", 0)
            refused = code_of(os.pread, fd, 1, 0)
            return done, refused, code_of(os.open, place / "f", os.O_RDONLY), os.fstat(fd).st_size

    return in_child(use, uid=1000, gid=1000)


def is_made_read_only(place: Path) -> object:
    """A mode without writing, for a file that is made to be written."""

    def use() -> tuple[object, ...]:
        with opened(place / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o400) as fd:
            done = os.write(fd, b"once")
            return done, os.pread(fd, 4, 0), code_of(os.open, place / "new", os.O_WRONLY)

    os.chmod(place, 0o777)
    return in_child(use, uid=1000, gid=1000)


def is_written_by_others(place: Path) -> object:
    """A process that has it open sees what another writes, and its size."""
    with opened(place / "f", os.O_RDONLY) as fd:
        before = os.fstat(fd).st_size

        def write() -> int:
            with opened(place / "f", os.O_WRONLY | os.O_APPEND) as other:
                return os.write(other, b"by another")

        done = in_child(write)
        return before, done, os.fstat(fd).st_size, os.pread(fd, 20, before)


ACTS: Final[tuple[Callable[[Path], object], ...]] = (
    reads,
    writes,
    appends,
    truncates,
    goes_around_the_cache,
    maps,
    maps_to_read,
    has_two_names,
    is_replaced,
    is_removed,
    has_holes,
    is_searched_for_holes,
    is_synced,
    is_sent,
    comes_without_a_name,
    is_executed,
    meets_its_limit,
    belongs_to_one_who_only_writes,
    is_made_read_only,
    is_written_by_others,
)
