"""Which file a command is in the guest, and why the kernel or the loader will not start it.

For a process that has changed its root to the guest and taken on the user's credentials,
environment and working directory, and whose next step is execve: every path is simply the guest's,
and the kernel resolves it. One thread, and no import after the first: the host's Python files are
out of reach. `find` before execve, `check` for what would fail only after it has succeeded,
`explain` when it has failed. The kernel has the last word: what cannot be understood is let
through.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from sysroot_fs.guest import elf, libraries
from sysroot_fs.guest.plan import Refusal
from sysroot_fs.text import reason, shown

NOT_FOUND: Final = 127
NOT_RUNNABLE: Final = 126

DEFAULT_PATH: Final = b"/usr/local/bin:/bin:/usr/bin"
"""What musl's execvp takes where PATH is not set."""
_LINE: Final = 256  # BINPRM_BUF_SIZE: all that the kernel reads of a #! line
_DEPTH: Final = 5  # scripts of scripts that the kernel follows before ELOOP
_STRING_LIMIT: Final = 131072  # MAX_ARG_STRLEN: the longest argument
_SHOWN: Final = 200  # characters of a name that are shown


def _name(path: bytes) -> str:
    text = shown(path)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _names(paths: Sequence[bytes], most: int = 12) -> str:
    listed = ", ".join(map(_name, paths[:most]))
    return listed if len(paths) <= most else f"{listed} and {len(paths) - most} more"


def _quoted(path: bytes) -> str:
    return f"`{_name(path)}`"


# --- can it be executed? ----------------------------------------------------------------------


@attrs.frozen
class _Obstacle:
    """Why a file cannot be executed: what is said after its name, or after `which`."""

    text: str
    status: int = NOT_RUNNABLE
    plain: bool = False
    """There is no such file, and no more to it."""
    shut: bool = False
    """A directory on the way may not be searched: nobody knows whether there is such a file."""

    @property
    def which(self) -> str:
        """What is said after `which` of a file that another one needs."""
        return "the guest lacks" if self.plain else self.text


def _obstacle(path: bytes) -> _Obstacle | None:
    """What keeps this user from executing *path*, None where nothing does."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _absence(path)
    except PermissionError:
        where = next((p for p in _above(path) if not _may_execute(p)), os.path.dirname(path))
        text = f"cannot be reached: this user may not search {_name(where)}"
        return _Obstacle(text, shut=True)
    except ValueError:
        return _Obstacle("cannot be found: no file name holds a NUL byte", NOT_FOUND)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _Obstacle("was not found in the guest: the name is too long", NOT_FOUND)
        if error.errno == errno.ELOOP:
            return _Obstacle("leads through symbolic links that go round in a circle")
        return _Obstacle(f"cannot be looked at: {reason(error)}")
    if stat.S_ISDIR(found.st_mode):
        return _Obstacle("is a directory")
    if not stat.S_ISREG(found.st_mode):
        return _Obstacle("may not be executed: it is not a file but a device, fifo or socket")
    if _may_execute(path):
        return None
    mode = stat.S_IMODE(found.st_mode)
    if not mode & 0o111:
        why = f"it has no x permission (mode {mode:04o})"
    elif _is_noexec(path):
        why = "it lies on a mount with noexec"
    else:
        why = f"its x permission is not for this user (mode {mode:04o}, owner {found.st_uid})"
    return _Obstacle(f"may not be executed: {why}")


def _may_execute(path: bytes) -> bool:
    try:
        return os.access(path, os.X_OK, effective_ids=True)
    except OSError:
        return False


def _is_noexec(path: bytes) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_NOEXEC)
    except OSError:
        return False


def _above(path: bytes) -> Iterator[bytes]:
    """The directories on the way to *path*, outermost first."""
    at = path.find(b"/", 1)
    while at > 0:
        yield path[:at]
        at = path.find(b"/", at + 1)


def _absence(path: bytes) -> _Obstacle:
    """There is no such file: what of the way to it is there?"""
    if not path:
        return _Obstacle("is no name of a file", NOT_FOUND)
    for place in (*_above(path), path):
        try:
            if place != path and not stat.S_ISDIR(os.stat(place).st_mode):
                text = f"was not found in the guest: {_name(place)} is not a directory"
                return _Obstacle(text, NOT_FOUND)
        except OSError:
            pass
        try:
            target = os.readlink(place) if not os.path.exists(place) else None
        except OSError:
            target = None
        if target is not None:
            link = f"is a symbolic link to {_name(target)}, which the guest lacks"
            if place != path:
                link = f"was not found in the guest: {_name(place)} {link}"
            return _Obstacle(link, NOT_FOUND)
        if place != path and not os.path.exists(place):
            text = f"was not found in the guest: there is no directory {_name(place)}"
            return _Obstacle(text, NOT_FOUND, plain=True)
    where = os.path.dirname(path)
    if not path.startswith(b"/"):
        here = _working_directory()
        if here is None:
            text = "was not found in the guest: the working directory is gone"
            return _Obstacle(text, NOT_FOUND)
        where = os.path.normpath(os.path.join(here, where))
    text = f"was not found in the guest: looked in {_name(where or b'/')}"
    return _Obstacle(text, NOT_FOUND, plain=True)


def _working_directory() -> bytes | None:
    try:
        return os.getcwdb()
    except OSError:
        return None


# --- before execve ----------------------------------------------------------------------------


def find(command: bytes, environment: Mapping[bytes, bytes]) -> bytes:
    """The file that *command* means, by PATH where it has no slash; raises Refusal.

    As execvp(3) and shells do: what PATH finds but may not be executed is passed over, and
    reported where nothing better comes.
    """
    if not command:
        raise Refusal(NOT_FOUND, "the command is empty: name a program of the guest")
    if b"/" in command:
        obstacle = _obstacle(command)
        if obstacle is not None:
            raise Refusal(obstacle.status, f"{_quoted(command)} {obstacle.text}")
        return command
    looked: dict[bytes, None] = {}
    notes: list[str] = []
    found: tuple[bytes, _Obstacle] | None = None
    for directory in environment.get(b"PATH", DEFAULT_PATH).split(b":"):
        # An empty name is the working directory.
        looked[directory or b"."] = None
        path = os.path.join(directory or b".", command)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            pass
        obstacle = _obstacle(path)
        if obstacle is None:
            return path
        if obstacle.shut or obstacle.status == NOT_FOUND:
            notes.append(f"{_name(path)} {obstacle.text}")
        else:
            found = found or (path, obstacle)
    if found is not None:
        path, obstacle = found
        raise Refusal(NOT_RUNNABLE, f"{_quoted(path)} {obstacle.text}")
    remark = f" ({'; '.join(notes[:3])})" if notes else ""
    raise Refusal(
        NOT_FOUND,
        f"{_quoted(command)} was not found in the guest: looked in {_names(list(looked))}{remark}",
    )


def check(program: bytes, environment: Mapping[bytes, bytes]) -> None:
    """Raise Refusal where execve will succeed and the loader then lack a library.

    Of a script its interpreter is checked.
    """
    *_, (path, told) = _scripts(program)
    try:
        image = elf.read(path)
    # Not there, or not to be read (mode 0111): the kernel decides.
    except (OSError, ValueError):
        return
    if image is None:
        return
    missing = libraries.missing(path, image, environment)
    if not missing:
        return
    first, *others = missing
    by = f" (needed by {_name(first.needed_by)})" if first.needed_by else ""
    said = f"{told} needs the library {_name(first.library)}{by}, which "
    if first.shut is not None:
        said += f"this user may not read: {_name(first.shut)}"
    else:
        said += "the guest lacks"
        said += f": looked in {_names(first.looked)}" if first.looked else ""
    if first.ignored:
        said += ", and not in LD_LIBRARY_PATH, which programs that gain rights ignore"
    if others:
        said += f"; it also lacks {_names([other.library for other in others], 5)}"
    raise Refusal(NOT_FOUND, said)


# --- scripts ----------------------------------------------------------------------------------


def _head(path: bytes, size: int) -> bytes:
    """The first bytes of a regular file; nothing of one that cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            return stream.read(size)
    except (OSError, ValueError):
        return b""


def _interpreter(head: bytes) -> bytes | None:
    """What a #! line names, read as the kernel does (fs/binfmt_script.c); None where nothing."""
    if not head.startswith(b"#!"):
        return None
    line, newline, _ = head[2:_LINE].partition(b"\n")
    line = line.lstrip(b" \t")
    ends = [at for at in map(line.find, (b" ", b"\t", b"\0")) if at >= 0]
    # Without any end the name may go on where the kernel does not read.
    if not ends and not newline and len(head) >= _LINE:
        return None
    return line[: min(ends, default=len(line))] or None


def _scripts(program: bytes) -> Iterator[tuple[bytes, str]]:
    """The program and, as long as they are scripts, their interpreters.

    Each with the beginning of a sentence about it, which goes on with its verb.
    """
    told = _quoted(program)
    yield program, told
    for depth in range(_DEPTH):
        name = _interpreter(_head(program, _LINE))
        if name is None:
            return
        told += f"{', which' if depth else ''} is a script for {_name(name)}"
        yield name, f"{told}, which"
        program = name


_FORMATS: Final = {
    b"\xfe\xed\xfa\xce": "a macOS program",
    b"\xfe\xed\xfa\xcf": "a macOS program",
    b"\xce\xfa\xed\xfe": "a macOS program",
    b"\xcf\xfa\xed\xfe": "a macOS program",
    b"MZ": "a Windows program",
    b"\0asm": "a WebAssembly module",
    b"!<arch>\n": "an archive of object files",
}


def _format(head: bytes) -> str | None:
    """Programs of other systems, by their first bytes."""
    if head.startswith(b"\xca\xfe\xba\xbe"):
        # Of a universal binary the number of architectures follows, of a Java class its version.
        return "a macOS program" if int.from_bytes(head[4:8], "big") < 43 else "a Java class"
    return next((what for magic, what in _FORMATS.items() if head.startswith(magic)), None)


def is_plain_script(program: bytes) -> bool:
    """Whether *program* is text without a #! line, which shells give to /bin/sh on ENOEXEC.

    As shells tell: no NUL byte before the end of the first line.
    """
    head = _head(program, 4096)
    if not head or head.startswith((b"#!", b"\x7fELF")) or (_format(head) and b"\0" in head):
        return False
    return b"\0" not in head.partition(b"\n")[0]


# --- after execve -----------------------------------------------------------------------------


def explain(
    program: bytes,
    arguments: Sequence[bytes],
    error: OSError,
    environment: Mapping[bytes, bytes],
    *,
    fallback: str = "all",
) -> Refusal:
    """Why execve(*program*) has failed with *error*, to be raised or shown by the caller.

    *arguments* are all of argv. *fallback* is the mount's option: with `safe` and `none` it may
    be why the guest lacks a loader that the host has.
    """
    if error.errno == errno.E2BIG:
        return _too_big(program, arguments, environment)
    chain = list(_scripts(program))
    for link, (path, told) in enumerate(chain):
        obstacle = _obstacle(path)
        if obstacle is not None:
            return _refused(path, told, obstacle, fallback, link == 0)
    path, told = chain[-1]
    image, head = _look(path)
    loader = image.interpreter if image is not None and _is_native(image) else None
    if loader is not None and error.errno != errno.ENOEXEC:
        obstacle = _obstacle(loader)
        if obstacle is not None:
            libc = libraries.libc_of(loader)
            needs = f"{told} needs the loader {_name(loader)}{f' ({libc})' if libc else ''}, which"
            return _refused(loader, needs, obstacle, fallback, False)
    status = NOT_FOUND if error.errno == errno.ENOENT else NOT_RUNNABLE
    return Refusal(status, f"{told} {_trouble(error, image, loader, head, len(chain))}")


def _refused(path: bytes, told: str, obstacle: _Obstacle, fallback: str, itself: bool) -> Refusal:
    said = f"{told} {obstacle.text if itself else obstacle.which}"
    if not itself and path.endswith(b"\r"):
        said += ": the script has Windows line ends, whose \\r is part of the name"
    elif not itself and obstacle.status == NOT_FOUND and fallback in ("safe", "none"):
        said += (
            f": the host's is not used with fallback={fallback}: "
            "install the guest's own, or use fallback=all"
        )
    return Refusal(obstacle.status, said)


def _look(path: bytes) -> tuple[elf.Image | None, bytes]:
    try:
        return elf.read(path), _head(path, 4096)
    except (OSError, ValueError):
        return None, b""


def _this_machine() -> str:
    machine = os.uname().machine
    if len(machine) == 4 and machine.startswith("i") and machine.endswith("86"):
        return "i386"
    return "arm" if machine.startswith("armv") else machine


# Machines whose kernels run the others' programs as well, most of the time.
_ALSO: Final = {"x86_64": ("i386", "x32"), "aarch64": ("arm",), "ppc64": ("ppc",)}


def _is_native(image: elf.Image) -> bool:
    """Whether the kernel itself, no emulator, starts such programs."""
    here = _this_machine()
    return image.machine == here or image.machine in _ALSO.get(here, ())


def _trouble(
    error: OSError, image: elf.Image | None, loader: bytes | None, head: bytes, links: int
) -> str:
    """What is said of a file that is there, may be executed, and was refused all the same."""
    code, here = error.errno, _this_machine()
    if image is not None and image.machine != here:
        said = f"is for {image.machine}, this machine runs {here} programs"
        if code == errno.ENOEXEC:
            return said
        if code == errno.ENOENT and not _is_native(image):
            return f"{said}, and the emulator that it has for others is not in the guest"
    if code == errno.ENOEXEC:
        return _misfit(image, head)
    if code in (errno.ELIBBAD, errno.EIO, errno.EINVAL) and loader is not None:
        return f"needs the loader {_name(loader)}, which the kernel cannot use: {reason(error)}"
    if code == errno.ELOOP and links > _DEPTH:
        return f"makes more than {_DEPTH - 1} scripts of scripts, which the kernel does not follow"
    if code == errno.ETXTBSY:
        return "may not be executed: somebody has it open for writing"
    if code == errno.ENOENT and not head:
        return (
            "is there, but the loader or interpreter that it asks for is not; "
            "which one cannot be seen, as this user may not read the file"
        )
    if code == errno.ENOENT:
        return "is there, but something that the kernel needs to start it is not"
    return f"could not be started: {reason(error)}"


def _misfit(image: elf.Image | None, head: bytes) -> str:
    """What a file is that the kernel does not take for a program (ENOEXEC)."""
    if image is not None:
        if image.kind == "REL":
            return "is an object file and no program: link it first"
        if image.kind == "CORE":
            return "is a core dump and no program"
        return "is an ELF file that the kernel does not take: it may be damaged"
    if head.startswith(b"\x7fELF"):
        return "is a damaged or cut off ELF file"
    if not head:
        return "is empty or cannot be read"
    known = _format(head)
    if known is not None:
        return f"is {known}"
    if head.startswith(b"#!"):
        if _interpreter(head) is None and head[2:_LINE].split(b"\n")[0].strip(b" \t"):
            return f"is a script whose first line is longer than {_LINE} bytes"
        return "is a script whose first line names no interpreter"
    if b"\0" not in head:
        return "is text without a first line `#!INTERPRETER`"
    return "is no program: neither an ELF file nor a script"


def _too_big(
    program: bytes, arguments: Sequence[bytes], environment: Mapping[bytes, bytes]
) -> Refusal:
    settings = [name + b"=" + value for name, value in environment.items()]
    for what, strings in (("an argument", arguments), ("a variable of the environment", settings)):
        longest = max(map(len, strings), default=0)
        if longest >= _STRING_LIMIT:
            why = f"{what} has {longest} bytes, and the kernel takes {_STRING_LIMIT - 1}"
            break
    else:
        sizes = [sum(len(string) + 1 for string in strings) for strings in (arguments, settings)]
        why = (
            f"the arguments ({sizes[0]} bytes) and the environment ({sizes[1]} bytes) are together "
            "more than the kernel takes (`ulimit -s` sets how much)"
        )
    return Refusal(NOT_RUNNABLE, f"{_quoted(program)} could not be started: {why}")
