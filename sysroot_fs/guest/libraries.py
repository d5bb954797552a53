"""Which libraries of a dynamic program its loader would not find.

The loader says so itself, but only after execve has succeeded: the caller is gone then, and the
user is left with the loader's words. So the same search is made here before, by the rules of musl
and of glibc (ld.so(8); musl's `ldso/dynlink.c`, `load_library`; glibc's `elf/dl-load.c`,
`_dl_map_object`), in a few milliseconds. It need not be exact: where it misses a library, the
loader is asked (`LOADER --list PROGRAM`), and only what both of them miss is missing. A search
that finds too much leaves the complaint to the loader, as it would be without any of this.

Works inside the guest: every path is the guest's, and the kernel resolves it. One thread.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from sysroot_fs.guest import elf

OBJECTS: Final = 512
"""Libraries of one program that are looked at; large desktop programs have 200."""
PATIENCE: Final = 2.0
"""Seconds that the search may take: a guest's libraries may be made to take for ever."""
LOADER_PATIENCE: Final = 5.0
"""Seconds that the loader may take to list what it finds; it takes some milliseconds."""
_OUTPUT: Final = 1 << 20
_CACHE: Final = b"/etc/ld.so.cache"
_CACHE_SIZE: Final = 16 << 20  # 35 KB on a small machine, 300 KB on a large one

# musl's loader is its libc and takes these for itself (`reserved` in load_library).
_MUSL_ITSELF: Final = tuple(
    b"lib" + name + b"." for name in (b"c", b"pthread", b"rt", b"m", b"dl", b"util", b"xnet")
)
_MUSL_DEFAULT: Final = b"/lib:/usr/local/lib:/usr/lib"

# glibc's directories are chosen when it is built; the distributions' choices, by machine.
_MULTIARCH: Final = {
    "i386": b"i386-linux-gnu",
    "arm": b"arm-linux-gnueabihf",
    "ppc64le": b"powerpc64le-linux-gnu",
    "x32": b"x86_64-linux-gnux32",
    "mips64el": b"mips64el-linux-gnuabi64",
}

_GLIBC_MISSES: Final = re.compile(
    rb"^\s*(\S.*?) => not found$|"
    rb"error while loading shared libraries: (.+?): cannot open shared object file",
    re.MULTILINE,
)
_MUSL_MISSES: Final = re.compile(rb"^Error loading shared library (.+?): ", re.MULTILINE)


@attrs.frozen
class Missing:
    """A library that neither the search nor the loader finds."""

    library: bytes
    needed_by: bytes | None
    """The library that needs it, under the name it was asked for; None for the program itself."""
    looked: tuple[bytes, ...]
    """The directories, in order; empty for a library that is named by its path."""
    shut: bytes | None
    """A file of that name which this user may not read, where there was one."""
    ignored: bool
    """Whether LD_LIBRARY_PATH is set and does not count, as the program gains rights."""


def libc_of(loader: bytes) -> str | None:
    """`musl` or `glibc`, by the loader's file name; None for every other one."""
    name = os.path.basename(loader)
    if name.startswith(b"ld-musl-"):
        return "musl"
    # ld64.so: PowerPC and s390x; ld.so: old MIPS.
    if name.startswith((b"ld-linux", b"ld64.so.", b"ld.so.")):
        return "glibc"
    return None


def missing(program: bytes, image: elf.Image, environment: Mapping[bytes, bytes]) -> list[Missing]:
    """The libraries of *program* that its loader will not find, the first ones first.

    *image* is the program as `elf.read` saw it. Never raises: what cannot be looked at is not
    missing.
    """
    loader = image.interpreter
    libc = libc_of(loader) if loader is not None else None
    if loader is None or libc is None or not image.needed:
        return []
    # A name without a slash would be searched for, and one with a dash be an option.
    path = program if program.startswith(b"/") else b"./" + program
    search = _Search(path, image, loader, libc == "musl", environment, gains_rights(path))
    try:
        missed = search.run()
    except _GaveUp:
        return []
    if not missed:
        return []
    # $ORIGIN is where the file lies; the loader takes the path that it is given for that.
    confirmed = loader_misses(loader, os.path.realpath(path), environment, search.secure)
    return [miss for miss in missed if miss.library in confirmed]


# --- rights -----------------------------------------------------------------------------------

_PR_GET_NO_NEW_PRIVS: Final = 39
_prctl: Final = ctypes.CDLL(None).prctl
_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
_OVERFLOW: Final = 65534  # an id that this user namespace does not have


def gains_rights(program: bytes) -> bool:
    """Whether the kernel will run *program* with rights that its caller lacks (AT_SECURE).

    Loaders ignore LD_LIBRARY_PATH then. In doubt (other namespaces, file capabilities) False,
    which finds more.
    """
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        return True
    try:
        found = os.stat(program)
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            return False
    except OSError:
        return False
    if _OVERFLOW in (found.st_uid, found.st_gid) or _prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0):
        return False
    if found.st_mode & stat.S_ISUID and found.st_uid != os.getuid():
        return True
    # Without the group's x the bit means mandatory locking.
    both = stat.S_ISGID | stat.S_IXGRP
    return found.st_mode & both == both and found.st_gid != os.getgid()


# --- the search -------------------------------------------------------------------------------


class _GaveUp(Exception):
    """The search takes too long: nothing is known."""


@attrs.frozen(eq=False)
class _Object:
    """The program or a library that was found, and who asked for it first."""

    name: bytes
    path: bytes
    image: elf.Image
    parent: _Object | None


@attrs.define(eq=False)
class _Search:
    """The walk through all libraries, breadth first, as both loaders make it."""

    program: bytes
    image: elf.Image
    loader: bytes
    musl: bool
    environment: Mapping[bytes, bytes]
    secure: bool
    _deadline: float = attrs.Factory(lambda: time.monotonic() + PATIENCE)
    _system: list[bytes] | None = None
    _cache: bytes | None = None

    def run(self) -> list[Missing]:
        """Everything that is missed; raises _GaveUp."""
        missed: list[Missing] = []
        todo = deque([_Object(b"", self.program, self.image, None)])
        known = {os.path.basename(self.loader), self.loader}
        count = 0
        while todo:
            needer = todo.popleft()
            for name in needer.image.needed:
                if not name or name in known or (self.musl and name.startswith(_MUSL_ITSELF)):
                    continue
                known.add(name)
                count += 1
                if count > OBJECTS:
                    raise _GaveUp
                found = self._find(name, needer)
                if isinstance(found, Missing):
                    missed.append(found)
                elif found is not None:
                    todo.append(found)
                    # glibc knows a loaded library by its own name as well.
                    if not self.musl and found.image.soname:
                        known.add(found.image.soname)
        return missed

    def _find(self, name: bytes, needer: _Object) -> _Object | Missing | None:
        """The library, or the report that it is missed; None for one that cannot be understood."""
        shut = None
        looked: dict[bytes, None] = {}
        for where, path in self._candidates(name, needer):
            if time.monotonic() > self._deadline:
                raise _GaveUp
            if where:
                looked[where] = None
            if path is None:
                continue
            try:
                image = elf.read(path)
            except PermissionError:
                shut = shut or path
                continue
            except (OSError, ValueError):
                continue
            if image is None:
                return None
            # glibc passes over a library for another machine; musl loads it.
            if image.machine == self.image.machine:
                return _Object(name, path, image, needer)
            if self.musl:
                return None
        ignored = self.secure and bool(self.environment.get(b"LD_LIBRARY_PATH"))
        return Missing(name, needer.name or None, tuple(looked), shut, ignored)

    def _candidates(self, name: bytes, needer: _Object) -> Iterator[tuple[bytes, bytes | None]]:
        """What to try, in order: a place to name to the user, and the path, if it has one."""
        if b"/" in name:
            for path in self._expanded([name], needer):
                yield b"", path
            return
        for where in self._own_directories(needer):
            yield where, os.path.join(where, name)
        if not self.musl:
            for path in self._cached(name):
                yield _CACHE, path
            if self._cache:
                yield _CACHE, None
        if self._system is None:
            self._system = self._musl_system() if self.musl else self._glibc_system()
        for where in self._system:
            yield where, os.path.join(where, name)

    def _own_directories(self, needer: _Object) -> Iterator[bytes]:
        """The directories that the user and the files themselves name."""
        library_path = b"" if self.secure else self.environment.get(b"LD_LIBRARY_PATH", b"")
        if self.musl:
            yield from re.split(b"[:\n]+", library_path.strip(b":\n")) if library_path else ()
            # Everybody who led here is asked, and its run path counts like its rpath.
            asked: _Object | None = needer
            while asked is not None:
                own = asked.image.runpath or asked.image.rpath
                if own:
                    yield from self._expanded(re.split(b"[:\n]+", own.strip(b":\n")), asked)
                asked = asked.parent
            return
        if needer.image.runpath is None:
            asked = needer
            while asked is not None:
                if asked.image.rpath is not None and asked.image.runpath is None:
                    yield from self._expanded(asked.image.rpath.split(b":"), asked)
                asked = asked.parent
        if library_path:
            yield from self._expanded(re.split(b"[:;]", library_path), None)
        if needer.image.runpath is not None:
            yield from self._expanded(needer.image.runpath.split(b":"), needer)

    def _expanded(self, directories: list[bytes], owner: _Object | None) -> Iterator[bytes]:
        """$ORIGIN filled in; what holds another variable is left to the loader."""
        for directory in directories:
            if b"$" in directory:
                origin = self._origin(owner)
                if origin is None:
                    continue
                for variable in (b"${ORIGIN}", b"$ORIGIN"):
                    directory = directory.replace(variable, origin)
                if b"$" in directory:
                    continue
            yield directory or b"."

    def _origin(self, owner: _Object | None) -> bytes | None:
        if owner is None or owner.parent is None:
            # Loaders read /proc/self/exe. Neither trusts it where the program gains rights.
            return None if self.secure else os.path.dirname(os.path.realpath(self.program))
        return os.path.dirname(owner.path)

    def _musl_system(self) -> list[bytes]:
        # /lib/ld-musl-x86_64.so.1 reads /etc/ld-musl-x86_64.path, and one in /opt/m/lib reads
        # /opt/m/etc/ld-musl-x86_64.path.
        prefix = os.path.dirname(os.path.dirname(self.loader)).rstrip(b"/")
        stem = os.path.basename(self.loader).partition(b".so")[0]
        try:
            listed = _bytes_of(prefix + b"/etc/" + stem + b".path", 1 << 16)
        except FileNotFoundError:
            listed = _MUSL_DEFAULT
        except OSError:
            listed = b""
        return [part for part in re.split(b"[:\n]+", listed) if part]

    def _glibc_system(self) -> list[bytes]:
        machine = self.image.machine
        multiarch = _MULTIARCH.get(machine, machine.encode() + b"-linux-gnu")
        names = [
            prefix + part
            for part in (b"lib/" + multiarch, b"lib64", b"libx32", b"lib32", b"lib")
            for prefix in (b"/", b"/usr/")
        ]
        return [name for name in names if os.path.isdir(name)] or [b"/lib", b"/usr/lib"]

    def _cached(self, name: bytes) -> Iterator[bytes]:
        """Every path that the cache has for *name*.

        All of its formats keep whole paths as strings that end with NUL; which of them the
        loader would prefer does not matter, as the file itself is looked at.
        """
        if self._cache is None:
            try:
                self._cache = _bytes_of(_CACHE, _CACHE_SIZE)
            except OSError:
                self._cache = b""
        wanted = b"/" + name + b"\0"
        at = self._cache.find(wanted)
        while at >= 0:
            start = self._cache.rfind(b"\0", max(0, at - 4096), at) + 1
            path = self._cache[start : at + len(wanted) - 1]
            if path.startswith(b"/"):
                yield path
            at = self._cache.find(wanted, at + 1)


def _bytes_of(path: bytes, size: int) -> bytes:
    """At most *size* bytes of a regular file; raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"not a regular file: {os.fsdecode(path)}")
    with open(path, "rb") as stream:
        return stream.read(size)


# --- the loader itself ------------------------------------------------------------------------

# They change what --list prints or where to, or have it write files.
_NOISY: Final = (
    b"LD_DEBUG", b"LD_DEBUG_OUTPUT", b"LD_VERBOSE", b"LD_WARN", b"LD_BIND_NOW", b"LD_PROFILE",
    b"LD_SHOW_AUXV", b"LD_TRACE_PRELINKING",
)  # fmt: skip


def loader_misses(
    loader: bytes, program: bytes, environment: Mapping[bytes, bytes], secure: bool
) -> set[bytes]:
    """The libraries that *loader* says it does not find; none where it cannot be asked in time.

    *secure*: ask as for a program that gains rights, without any LD_ variable.
    """
    dropped = tuple(name for name in environment if name.startswith(b"LD_")) if secure else _NOISY
    kept = {name: value for name, value in environment.items() if name not in dropped}
    said = _said(loader, program, kept)
    if said is None:
        return set()
    pattern = _MUSL_MISSES if libc_of(loader) == "musl" else _GLIBC_MISSES
    return {name for groups in pattern.finditer(said) for name in groups.groups() if name}


def _said(loader: bytes, program: bytes, environment: Mapping[bytes, bytes]) -> bytes | None:
    """All that `LOADER --list PROGRAM` prints; None where it does not come to an end."""
    deadline = time.monotonic() + LOADER_PATIENCE
    # A guest root may lack /dev/null: standard input is a pipe that is at its end.
    nothing, shut = os.pipe()
    os.close(shut)
    output, printed = os.pipe()
    # Whatever was to be done about ended children is not to be done about this one. Ignored,
    # which outlasts execve, it would vanish unseen, and its number be somebody else's.
    children = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        pid = os.posix_spawn(
            loader,
            [loader, b"--list", program],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 0),
                (os.POSIX_SPAWN_DUP2, printed, 1),
                (os.POSIX_SPAWN_DUP2, printed, 2),
            ],
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
        )
        os.close(printed)
        printed = -1
        try:
            return _read_all(output, deadline)
        finally:
            # It has closed its output, or is out of time: there is nothing to wait for.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except (OSError, ValueError):
        return None
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if children is None else children)
        for descriptor in (nothing, output, printed):
            if descriptor >= 0:
                os.close(descriptor)


def _read_all(output: int, deadline: float) -> bytes | None:
    text = b""
    ready = select.poll()
    ready.register(output, select.POLLIN)
    while len(text) < _OUTPUT:
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(left * 1000):
            return None
        part = os.read(output, 65536)
        if not part:
            return text
        text += part
    return None
