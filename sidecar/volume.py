"""What a volume does to names and attributes: measured once, in the sysroot's own directory.

`probe` makes a private directory, tries, and takes it away again; where it may not write it
infers what can be seen from the entries that are there, and says so (`Traits.measured`). Nothing
is concluded from the operating system or, where it can be tried, from the filesystem type:
statfs says no more than "FUSE" of most volumes that fold, and folding can be a property of one
directory. All work is relative to the descriptor given and follows no symlink.

A probe takes 2 to 30 ms (`tests/test_volume.py` prints the time for each kind of volume).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal
from unicodedata import normalize

from attrs import frozen

from sidecar import linux, processes
from sidecar.making import make_directory

__all__ = ["PROBE_PREFIX", "TRANSPARENT", "ProbeError", "Traits", "probe"]

_log: Final = logging.getLogger(__name__)

PROBE_PREFIX: Final = b".sysroot-fs-probe-"
"""How the private directory's name begins; one that is still there was left by a kill."""

CANDIDATES: Final = b':*?"<>|\\' + bytes(range(1, 32)) + b"\x7f"
"""The ASCII bytes that some volume refuses in names and that Linux does not."""


class ProbeError(Exception):
    """The volume cannot be measured; the message says in one sentence why."""


@frozen(kw_only=True)
class Traits:
    """What one volume does, as far as names and attributes on it are concerned.

    | field | true, or the value, means |
    |---|---|
    | folds | names that differ in ASCII case are one entry |
    | preserves_case | an entry is listed in the case that it was created with |
    | normalises | "loose": composed and decomposed find each other; "stores": it lists one only |
    | ill_formed | names that are not UTF-8 come back byte for byte |
    | non_ascii | well-formed non-ASCII names come back byte for byte |
    | refused | the ASCII bytes that no name may contain or that come back changed |
    | trailing_dot_space | names ending in a dot or a space come back |
    | device_names | names such as ``aux`` and ``nul``, Windows' devices, come back |
    | name_max, name_unit | the longest name, in bytes or UTF-16 units |
    | modes, owners | chmod and chown take effect (owners are as modes unless root probes) |
    | special_files | FIFOs can be made |
    | xattrs | user.* extended attributes are kept |
    | rename_noreplace, rename_exchange | renameat2 does them |
    | time_step_ns | modification times are cut to multiples of it |
    | stable_inodes | hard links show one inode number, and so does every spelling of a name |
    | writable | something could be created (or only space was missing) |
    | measured | false where it could not be tried, and the rest is inferred |
    """

    folds: bool
    preserves_case: bool
    normalises: Literal["no", "loose", "stores"]
    ill_formed: bool
    non_ascii: bool
    refused: bytes
    trailing_dot_space: bool
    device_names: bool = True
    name_max: int
    name_unit: Literal["bytes", "utf16"]
    symlinks: bool
    hard_links: bool
    modes: bool
    owners: bool
    special_files: bool
    xattrs: bool
    rename_noreplace: bool
    rename_exchange: bool
    time_step_ns: int
    stable_inodes: bool
    writable: bool
    measured: bool

    @property
    def transparent(self) -> bool:
        """Whether every Linux name is stored as it is: then no index is needed."""
        return (
            not self.needs_spelling
            and self.preserves_case
            and self.ill_formed
            and self.non_ascii
            and not self.refused
            and self.trailing_dot_space
            and self.device_names
            and self.name_max >= 255
        )

    @property
    def needs_spelling(self) -> bool:
        """Whether a successful lstat leaves open how the entry is really spelled."""
        return self.folds or self.normalises != "no"


TRANSPARENT: Final = Traits(
    folds=False,
    preserves_case=True,
    normalises="no",
    ill_formed=True,
    non_ascii=True,
    refused=b"",
    trailing_dot_space=True,
    device_names=True,
    name_max=255,
    name_unit="bytes",
    symlinks=True,
    hard_links=True,
    modes=True,
    owners=True,
    special_files=True,
    xattrs=True,
    rename_noreplace=True,
    rename_exchange=True,
    time_step_ns=1,
    stable_inodes=True,
    writable=True,
    measured=True,
)
"""A Linux volume that does everything, such as ext4."""


def probe(dirfd: int) -> Traits:
    """Measure the volume on which a directory lies; `dirfd` may be an O_PATH descriptor.

    Raises ProbeError where the volume is dead or the directory gone. A signal that ends the process
    does so when the private directory is gone, for which the measurement is broken off.
    """
    while True:
        with processes.ending_signals_held() as is_ending, contextlib.suppress(_BrokenOff):
            return _probe(dirfd, is_ending)
        # Its handler has let the process live on.


class _BrokenOff(Exception):
    """The process is to end."""


def _probe(dirfd: int, is_ending: Callable[[], bool]) -> Traits:
    private = PROBE_PREFIX + os.urandom(8).hex().encode()
    try:
        try:
            make_directory(dirfd, private, 0o700)
        except OSError as error:
            if error.errno not in _NO_WRITING and not _makes_nothing(dirfd, error):
                raise
            return _infer(dirfd, writable=error.errno in _NO_SPACE)
        try:
            fd = os.open(private, _OPEN_DIRECTORY, dir_fd=dirfd)
            try:
                return _Bench(fd, is_ending).measure()
            finally:
                _empty(fd)
                os.close(fd)
        except OSError as error:
            # The volume filled up on the way: what was tried is worth nothing.
            if error.errno not in _NO_SPACE:
                raise
            return _infer(dirfd, writable=True)
        finally:
            _remove(dirfd, private)
    except OSError as error:
        text = error.strerror or str(error)
        raise ProbeError(f"{text} (is the volume still mounted and healthy?)") from error


_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_WRITING: Final = _NO_SPACE | {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
}

# A volume that gives one of these for a name has not judged the name.
_DEAD: Final = _NO_SPACE | {errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EROFS}


def _makes_nothing(dirfd: int, error: OSError) -> bool:
    # Filesystems without mkdir (proc) say ENOENT, and so does a directory that was removed.
    return error.errno == errno.ENOENT and os.stat(linux.fd_path(dirfd)).st_nlink > 0


def _remove(dirfd: int, private: bytes) -> None:
    try:
        os.rmdir(private, dir_fd=dirfd)
    except OSError as error:
        _log.warning("the probe could not remove its directory %r: %s", private, error.strerror)


def _empty(fd: int) -> None:
    # Errors are left to the rmdir that follows, which then says so.
    with contextlib.suppress(OSError):
        for name in _names(fd):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=fd)


def _names(fd: int) -> list[bytes]:
    # listdir() of a descriptor gives str; the undecodable come back through surrogates.
    return [os.fsencode(name) for name in os.listdir(fd)]


_TEXTS: Final = ("caf\u00e9", "cafe\u0301s", "\ud55c", "\u6f22\u5b57", "\u00df", "\U0001f600")
"""Letters with accents in either form, without capitals, and beyond 16 bits."""


class _Bench:
    """The measurements, in one empty private directory.

    Each experiment uses names of its own that no folding brings together with another's,
    because FUSE servers and the kernel remember names that were there before.
    """

    def __init__(self, fd: int, is_ending: Callable[[], bool]) -> None:
        self.fd = fd
        self.is_ending = is_ending

    def measure(self) -> Traits:
        folds, preserves_case, one_number = self.case()
        hard_links, linked_number = self.links()
        modes, owners = self.permissions()
        noreplace, exchange = self.renames()
        non_ascii, normalises = self.unicode()
        refused = self.refused()
        kept = self.kept([b"dot.", b"space ", b"aux", b"nul.txt", b"\xff\xfe-ill", b"\xe9t\xe9"])
        name_max, name_unit = self.length()
        return Traits(
            folds=folds,
            preserves_case=preserves_case,
            normalises=normalises,
            ill_formed={b"\xff\xfe-ill", b"\xe9t\xe9"} <= kept,
            non_ascii=non_ascii,
            refused=refused,
            trailing_dot_space={b"dot.", b"space "} <= kept,
            device_names={b"aux", b"nul.txt"} <= kept,
            name_max=name_max,
            name_unit=name_unit,
            symlinks=self.symlinks(),
            hard_links=hard_links,
            modes=modes,
            owners=owners,
            special_files=self.special_files(),
            xattrs=self.xattrs(),
            rename_noreplace=noreplace,
            rename_exchange=exchange,
            time_step_ns=self.time_step(),
            stable_inodes=hard_links and linked_number and (one_number or not folds),
            writable=True,
            measured=True,
        )

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Let the volume refuse what is tried inside; fail where it is no longer there."""
        try:
            yield
        except OSError as error:
            if error.errno in _DEAD:
                raise
            if error.errno == errno.EIO:
                # Some servers say EIO of a name that they cannot convert, and live on.
                os.stat(b".", dir_fd=self.fd)
                os.listdir(self.fd)

    def create(self, name: bytes) -> bool:
        if self.is_ending():
            raise _BrokenOff
        with self.judging():
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
            # Closed before anything else happens to it: an open file that is removed makes
            # libfuse servers leave a .fuse_hidden name for a moment.
            os.close(os.open(name, flags, 0o600, dir_fd=self.fd))
            return True
        return False

    def look(self, name: bytes) -> os.stat_result | None:
        with self.judging():
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        return None

    def drop(self, name: bytes) -> None:
        with self.judging():
            os.unlink(name, dir_fd=self.fd)

    def kept(self, names: Iterable[bytes]) -> set[bytes]:
        """Create names, and return those that are then listed exactly so."""
        created = {name for name in names if self.create(name)}
        listed = set(_names(self.fd))
        for name in created:
            self.drop(name)
        return created & listed

    def refused(self) -> bytes:
        """Which of the candidates no name may contain: one by one only where not all are taken.

        Creating is what a probe costs, up to a millisecond a file.
        """
        if self.kept([b"x%by" % CANDIDATES]):
            return b""
        kept = self.kept(b"x%cy" % byte for byte in CANDIDATES)
        return bytes(byte for byte in CANDIDATES if b"x%cy" % byte not in kept)

    def must_create(self, name: bytes) -> None:
        if not self.create(name):
            raise OSError(errno.EIO, f"no file named {os.fsdecode(name)} can be created there")

    def case(self) -> tuple[bool, bool, bool]:
        """Return (folds, preserves case, both spellings have one inode number)."""
        self.must_create(b"caseProbe")
        other = self.look(b"CASEpROBE")
        this = self.look(b"caseProbe")
        preserves = b"caseProbe" in _names(self.fd)
        self.drop(b"caseProbe")
        one_number = other is not None and this is not None and other.st_ino == this.st_ino
        return other is not None, preserves, one_number

    def unicode(self) -> tuple[bool, Literal["no", "loose", "stores"]]:
        """Return (non-ASCII names come back, normalises).

        Letters without capitals are included, and only small ones: what folding does to
        capitals is told by `preserves_case`.
        """
        # All in one name first; where that comes back as it was, so does each of them.
        if self.form("".join(_TEXTS)) == (True, "no"):
            return True, "no"
        found = [self.form(text) for text in _TEXTS]
        exact = all(one for one, _ in found)
        if any(answer == "stores" for _, answer in found):
            return exact, "stores"
        return exact, "loose" if any(answer == "loose" for _, answer in found) else "no"

    def form(self, text: str) -> tuple[bool, Literal["no", "loose", "stores"]]:
        """The same for one name."""
        name = text.encode()
        if not self.create(name):
            return False, "no"
        others = {normalize(form, text).encode() for form in ("NFC", "NFD")} - {name}
        listed = set(_names(self.fd))
        exact = name in listed
        answer: Literal["no", "loose", "stores"] = "no"
        if not exact and others & listed:
            answer = "stores"
        elif exact and any(self.look(other) is not None for other in others):
            answer = "loose"
        self.drop(name)
        return exact, answer

    def length(self) -> tuple[int, Literal["bytes", "utf16"]]:
        if b"n" * 255 in self.kept([b"n" * 255]):
            longest = 255
        else:
            longest, too_long = 1, 255
            while too_long - longest > 1:
                middle = (longest + too_long) // 2
                if b"n" * middle in self.kept([b"n" * middle]):
                    longest = middle
                else:
                    too_long = middle
        # As many ideographs (one UTF-16 unit, three bytes each) fit only if units are counted.
        wide = ("\u4e00" * longest).encode()
        return longest, "utf16" if wide in self.kept([wide]) else "bytes"

    def symlinks(self) -> bool:
        with self.judging():
            os.symlink(b"target/of it", b"symlink", dir_fd=self.fd)
            target = os.readlink(b"symlink", dir_fd=self.fd)
            self.drop(b"symlink")
            return target == b"target/of it"
        return False

    def links(self) -> tuple[bool, bool]:
        """Return (hard links work, both names have one inode number)."""
        self.must_create(b"link-one")
        works = one_number = False
        with self.judging():
            os.link(b"link-one", b"link-two", src_dir_fd=self.fd, dst_dir_fd=self.fd)
            one, two = self.look(b"link-one"), self.look(b"link-two")
            works = one is not None and two is not None and one.st_nlink == two.st_nlink == 2
            one_number = works and one is not None and two is not None and one.st_ino == two.st_ino
            self.drop(b"link-two")
        self.drop(b"link-one")
        return works, one_number

    def permissions(self) -> tuple[bool, bool]:
        """Return (modes, owners)."""
        self.must_create(b"modes")
        modes = owners = False
        # By descriptor: chmod follows a symlink that somebody put there, on a volume where
        # modes keep nobody out.
        fd = os.open(b"modes", os.O_RDWR | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            with self.judging():
                # Two modes: a volume without any answers a fixed one, which might be the first.
                os.fchmod(fd, 0o751)
                modes = stat.S_IMODE(os.fstat(fd).st_mode) == 0o751
                os.fchmod(fd, 0o640)
                modes = modes and stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
            owners = modes
            if os.geteuid() == 0:
                with self.judging():
                    owners = False
                    os.fchown(fd, 1234, 2345)
                    found = os.fstat(fd)
                    owners = (found.st_uid, found.st_gid) == (1234, 2345)
        finally:
            os.close(fd)
        self.drop(b"modes")
        return modes, owners

    def special_files(self) -> bool:
        with self.judging():
            os.mkfifo(b"fifo", 0o600, dir_fd=self.fd)
            found = self.look(b"fifo")
            self.drop(b"fifo")
            return found is not None and stat.S_ISFIFO(found.st_mode)
        return False

    def xattrs(self) -> bool:
        self.must_create(b"xattrs")
        value = None
        fd = os.open(b"xattrs", os.O_RDWR | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            with self.judging():
                os.setxattr(fd, b"user.sysroot-fs", b"kept")
                value = os.getxattr(fd, b"user.sysroot-fs")
        finally:
            os.close(fd)
        self.drop(b"xattrs")
        return value == b"kept"

    def renames(self) -> tuple[bool, bool]:
        """Return (NOREPLACE, EXCHANGE); whether they did it is looked at, not only said."""
        noreplace = exchange = False
        self.must_create(b"rename-one")
        # The target is free: the kernel itself answers EEXIST, whatever the volume can.
        with self.judging():
            linux.renameat2(self.fd, b"rename-one", self.fd, b"rename-two", linux.RENAME_NOREPLACE)
            noreplace = self.look(b"rename-two") is not None
        source = b"rename-two" if noreplace else b"rename-one"
        fd = os.open(source, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
        self.must_create(b"rename-three")
        with self.judging():
            linux.renameat2(self.fd, source, self.fd, b"rename-three", linux.RENAME_EXCHANGE)
            was, became = self.look(b"rename-three"), self.look(source)
            exchange = (
                was is not None and became is not None and (was.st_size, became.st_size) == (1, 0)
            )
        self.drop(b"rename-three")
        self.drop(source)
        return noreplace, exchange

    def time_step(self) -> int:
        self.must_create(b"times")
        # An odd second, and a fraction that no step divides.
        wanted = 1_500_000_001_987_654_321
        with self.judging():
            linux.utimens(b"times", wanted, wanted, self.fd, follow=False)
        found = self.look(b"times")
        self.drop(b"times")
        if found is not None:
            for step in _TIME_STEPS:
                rest = wanted % step
                if found.st_mtime_ns in (wanted - rest, wanted - rest + step):
                    return step
        return _TIME_STEPS[-1]


_TIME_STEPS: Final = (1, 100, 1_000, 1_000_000, 10_000_000, 1_000_000_000, 2_000_000_000)


# --- where nothing may be created -----------------------------------------------------

_SEEN_DIRECTORIES: Final = 64
_SEEN_LEVELS: Final = 4

# Filesystems that keep every Linux name. Of others, unmeasured, the safe belief is that they do
# not: an index that was not needed costs time, one that is missing shows stored names to guests.
_KEEP_ALL_NAMES: Final = frozenset(
    {"bcachefs", "btrfs", "cramfs", "erofs", "ext2", "ext3", "ext4", "f2fs"}
    | {"overlay", "ramfs", "squashfs", "tmpfs", "xfs"}
)


def _infer(dirfd: int, *, writable: bool) -> Traits:
    """Say what can be seen: the swapped spellings of names that are there, and the type."""
    here = linux.statx(dirfd, b"", linux.AT_EMPTY_PATH)
    found = linux.mount_type(here.mount_id)
    keeps_all = found is not None and found[0] in _KEEP_ALL_NAMES
    folds, capitals, normalises = _look_around(dirfd, here.mount_id)
    return Traits(
        folds=folds,
        preserves_case=capitals or keeps_all or not folds,
        normalises=normalises,
        ill_formed=keeps_all,
        non_ascii=True,
        refused=b"" if keeps_all else CANDIDATES,
        trailing_dot_space=keeps_all,
        device_names=keeps_all,
        name_max=os.fpathconf(dirfd, "PC_NAME_MAX") if keeps_all else 255,
        name_unit="bytes",
        symlinks=True,
        hard_links=True,
        modes=True,
        owners=True,
        special_files=True,
        xattrs=True,
        rename_noreplace=keeps_all,
        rename_exchange=keeps_all,
        time_step_ns=1 if keeps_all else _TIME_STEPS[-1],
        stable_inodes=keeps_all,
        writable=writable,
        measured=False,
    )


def _look_around(dirfd: int, mount_id: int) -> tuple[bool, bool, Literal["no", "loose"]]:
    """Walk a few directories; return (folds, a capital was listed, normalises).

    It ends with the first name whose swapped spelling tells: absent or an entry of its own
    (case-sensitive), or there and not listed (folds). Accents are judged in passing.
    """
    capitals = False
    normalises: Literal["no", "loose"] = "no"
    queue = [(os.open(b".", _OPEN_DIRECTORY, dir_fd=dirfd), 1)] if _readable(dirfd) else []
    seen = 0
    try:
        while queue:
            fd, level = queue.pop(0)
            seen += 1
            try:
                names = _names(fd)
                listed = set(names)
                capitals = capitals or any(name != name.lower() for name in names)
                for name in names:
                    if not name.isascii() and _answers_in_another_form(fd, name, listed):
                        normalises = "loose"
                for name in names:
                    swapped = name.swapcase()
                    if swapped != name:
                        hit = swapped not in listed and _exists(fd, swapped)
                        return hit, capitals, normalises
                if level < _SEEN_LEVELS:
                    for name in names[: _SEEN_DIRECTORIES - seen - len(queue)]:
                        below = _descend(fd, name, mount_id)
                        if below is not None:
                            queue.append((below, level + 1))
            finally:
                os.close(fd)
    finally:
        for fd, _ in queue:
            os.close(fd)
    return False, capitals, normalises


def _readable(dirfd: int) -> bool:
    return os.access(linux.fd_path(dirfd), os.R_OK | os.X_OK, effective_ids=True)


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except (FileNotFoundError, PermissionError):
        return False
    return True


def _answers_in_another_form(fd: int, name: bytes, listed: set[bytes]) -> bool:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    forms = {normalize("NFC", text).encode(), normalize("NFD", text).encode()} - listed
    return any(len(form) <= 255 and _exists(fd, form) for form in forms)


def _descend(fd: int, name: bytes, mount_id: int) -> int | None:
    """Open a directory below, or return None for anything else and for other mounts."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        found = linux.statx(fd, name)
        if stat.S_ISDIR(found.mode) and found.mount_id == mount_id:
            return os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    return None
