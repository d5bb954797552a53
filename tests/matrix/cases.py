"""Cases: shell scripts whose outcome must be the same in every way to run one guest.

A case runs in the guest's /bin/sh in a fresh empty working directory; its outcome is the exit
status, what it wrote, and what it left in that directory. `run_cases` runs many in one guest
process, so that a batch costs seconds; `compare` says in words where two outcomes differ. What is
expected comes from running the same cases in a chroot of the same guest on ext4
(`chroot_command`), never from a table.

What a script prints must not depend on where it runs: inode and device numbers, process ids, free
space and times that it did not set are the script's to leave out. Only the working directory's own
path is normalised, in `_normal`. A case may kill its shell or everything in its process group; what
escapes from that group is left to `enter` to end. A file may grow to `FILE_BYTES`.

A batch leaves nothing in `guest_dir`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.matrix.sandbox import KEEP_ONLY

__all__ = [
    "NEEDS",
    "Case",
    "CasesError",
    "Entry",
    "Outcome",
    "chroot_command",
    "compare",
    "reason",
    "run_cases",
]

NEEDS: Final = {
    "symlinks": "the volume has no symbolic links",
    "hard-links": "the volume has no hard links",
    "modes": "the volume keeps no permissions",
    "owners": "the volume keeps no owners",
    "special-files": "the volume has no fifos and devices",
    "xattrs": "the volume has no extended attributes",
    "sparse": "the volume stores the holes of a file",
    "blocks": "the volume counts the blocks of a file later, or not at all",
    "fine-times": "the volume rounds times, or does not have all of them",
    "directory-links": "the volume does not count a directory's subdirectories as links",
    "removed-directories": "the volume forgets a directory that was removed and is still in use",
    "setgid-kept": "the volume clears set-gid at every change of owner",
    "large-ids": "the volume has no user ids of more than 31 bits",
    "open-renames": "the volume counts a link too many of a file that was renamed while open",
    "atimes": "the volume sets no time of access by itself",
    "any-targets": "the volume refuses targets of symbolic links that are not UTF-8",
    "iota-subscripts": "the volume loses a rename between two forms of an iota subscript",
}
"""What a case may need of the volume below its directory, and the reason where it lacks that."""

FILE_BYTES: Final = 1 << 30
"""The size that no file of a case may pass: a case that writes for ever must not fill the disk."""

# A machine that does other things as well is slow: what is tested is not how fast it is.
# Seconds for a case, and for all of a batch.
_LIMIT: Final = 150.0
_PATIENCE: Final = 560.0

_STREAM: Final = ("out", "err", "late", "stat", "names", "links", "sums", "trouble")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def _is_name(case: Case, attribute: attrs.Attribute[str], value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name for a case: a-z, 0-9 and - only")


def _are_needs(
    case: Case, attribute: attrs.Attribute[frozenset[str]], value: frozenset[str]
) -> None:
    if unknown := value - NEEDS.keys():
        raise ValueError(f"{sorted(unknown)} are not in NEEDS")


@attrs.frozen
class Case:
    """A script for the guest's shell, named after what it checks.

    `program` is what it is about, `needs` what the volume has to be able to do (of `NEEDS`),
    `user` who runs it: uid and gid are the same, the directory is theirs. In `script` bytes that
    are not UTF-8 stand as surrogates.
    """

    name: str = attrs.field(validator=_is_name)
    program: str
    script: str
    needs: frozenset[str] = attrs.field(default=frozenset(), validator=_are_needs)
    user: int = 0


@attrs.frozen(order=True)
class Entry:
    """What lies in a working directory afterwards; `.` is the directory itself.

    `size` is that of files and symlinks and 0 for others; `target` is where a symlink leads, or a
    device's numbers; `content` the SHA-256 of a file.
    """

    name: bytes
    kind: str
    mode: int
    owner: int
    group: int
    size: int
    links: int
    target: bytes = b""
    content: str = ""


@attrs.frozen
class Outcome:
    """What came of a case: 128+N is the status where signal N has killed its shell.

    `trouble` has what kept the runner from its work: the time limit, a directory that could not be
    listed.
    """

    status: int
    out: bytes
    err: bytes
    tree: tuple[Entry, ...]
    trouble: tuple[str, ...] = ()


class CasesError(Exception):
    """The batch broke off; the message says at which case, `outcomes` has those before it."""

    def __init__(self, message: str, outcomes: dict[str, Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


def chroot_command(root: Path) -> list[str]:
    """A prefix that runs a program in *root* with processes and /proc of its own (needs root).

    What is mounted elsewhere it does not keep busy.
    """
    script = f"""{KEEP_ONLY}
keep_only "$0"
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"
"""
    cell = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    return [*cell, "sh", "-c", script, str(root)]


# --- running ------------------------------------------------------------------------------------

# A frame for each case, on stdout:
#     CASE <name> <status> <bytes of each of _STREAM>\n  <those bytes>  \nDONE <name>\n
# Lengths go before the bytes, so these may be any. What the case writes goes to files, not pipes:
# a process that it leaves behind would keep a pipe open for ever.
_DRIVER: Final = r"""
PATH=/usr/bin:/bin LC_ALL=C TZ=UTC
export PATH LC_ALL TZ
umask 022
ulimit -f @BLOCKS@
here=$1 limit=$2 inside=$3
io=$here/+io
mkdir "$io" || exit 99

look() {
    cd "$w" || return
    find . -print0 | xargs -0 stat --printf='%n\0%f\0%u\0%g\0%s\0%h\0%t:%T\0' >"$io/stat"
    find . -type l -print0 >"$io/names"
    xargs -0 -r readlink -z <"$io/names" >"$io/links"
    find . -type f -print0 | xargs -0 -r sha256sum -z >"$io/sums"
}

one() {
    name=$1 w=$here/$1
    mkdir "$w" || exit 98
    if [ "$2" = 0 ]; then become=; else
        chown "$2:$2" "$w"
        become="chroot --skip-chdir --userspec=$2:$2 --groups=$2 /"
    fi
    : >"$io/stat" >"$io/names" >"$io/links" >"$io/sums" >"$io/trouble"
    # The shell has what it starts in the background ignore INT and QUIT.
    (
        cd "$w" || exit 97
        exec $become env -i --default-signal=INT,QUIT \
            PATH="$PATH" HOME="$w" LC_ALL=C TZ=UTC timeout -v -k 1 "$limit" /bin/sh -c "$3"
    ) </dev/null >"$io/late" 2>&1 3>"$io/out" 4>"$io/err" &
    group=$!
    wait $group
    status=$?
    kill -KILL -$group
    for try in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 -$group || break
        sleep 0.02
    done
    [ -z "$inside" ] || [ ! -d "$w" ] || (look) 2>"$io/trouble"
    cd "$io"
    echo CASE "$name" $status $(stat -c %s @STREAM@)
    cat @STREAM@
    echo
    echo DONE "$name"
    cd /
    [ -z "$inside" ] || rm -rf "$w"
} 2>/dev/null
""".replace("@STREAM@", " ".join(_STREAM)).replace("@BLOCKS@", str(FILE_BYTES // 512))

# In the case's shell, so that timeout's own words do not mix with the case's.
_REDIRECT: Final = "exec >&3 2>&4 3>&- 4>&-\n"
_END: Final = 'rm -rf "$io"\n'


def run_cases(
    cases: Sequence[Case],
    enter: Sequence[str | Path],
    guest_dir: str,
    *,
    outside: Path | None = None,
    limit: float = _LIMIT,
    patience: float = _PATIENCE,
) -> dict[str, Outcome]:
    """Run *cases* in one guest process; the outcomes by name.

    *enter* is a command prefix that runs a program in the guest, as root where cases have a `user`;
    it has to pass stdin and stdout on. *guest_dir* is an existing directory as the guest sees it;
    every user has to be able to enter it. *outside* is the same directory as the caller sees it:
    then that is where the trees are looked at, else the guest's programs do it. *limit* is the
    seconds for a case, *patience* for all of them. Raises `CasesError` where the guest ends before
    the last case.
    """
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"two cases of one name: {twice}")
    lines = [_DRIVER]
    for case in cases:
        words = ("one", case.name, str(case.user), _REDIRECT + case.script)
        lines.append(shlex.join(words) + "\n")
    driver = "".join([*lines, _END]).encode("utf-8", "surrogateescape")
    command = [*enter, "/bin/sh", "-s", guest_dir, str(limit), "" if outside else "inside"]
    status, out, err = _run(command, driver, patience)

    outcomes: dict[str, Outcome] = {}
    try:
        for name, frame in _frames(out):
            w = f"{guest_dir.rstrip('/')}/{name}".encode()
            tree = None if outside is None else _look(outside / name)
            outcomes[name] = _outcome(frame, w, tree)
        if missing := [name for name in names if name not in outcomes]:
            raise ValueError(f"no answer from {missing[0]}")
    except ValueError as error:
        said = err.decode(errors="replace")[-2000:]
        raise CasesError(f"{error}; the guest ended with {status}: {said}", outcomes) from None
    finally:
        if outside is not None:
            for name in (*names, "+io"):
                _remove(outside / name)
    return outcomes


def _run(words: Sequence[str | Path], stdin: bytes, patience: float) -> tuple[str, bytes, bytes]:
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        return f"nothing within {patience:g} s", out, err
    return f"status {process.returncode}", out, err


@attrs.frozen
class _Frame:
    status: int
    parts: dict[str, bytes]


def _frames(data: bytes) -> Iterator[tuple[str, _Frame]]:
    """The frames that *data* is made of; `ValueError` where it breaks off or is something else."""
    at = 0
    while at < len(data):
        head, newline, _ = data[at : at + 1000].partition(b"\n")
        fields = head.decode(errors="replace").split()
        if not newline or len(fields) != 3 + len(_STREAM) or fields[0] != "CASE":
            raise ValueError(f"no frame: {data[at : at + 200]!r}")
        at += len(head) + 1
        parts = {}
        for part, length in zip(_STREAM, map(int, fields[3:]), strict=True):
            parts[part] = data[at : at + length]
            at += length
        tail = f"\nDONE {fields[1]}\n".encode()
        if data[at : at + len(tail)] != tail:
            raise ValueError(f"the answer of {fields[1]} breaks off or goes on behind its end")
        at += len(tail)
        yield fields[1], _Frame(int(fields[2]), parts)


def _outcome(frame: _Frame, w: bytes, tree: tuple[list[Entry], list[str]] | None) -> Outcome:
    parts = frame.parts
    trouble = parts["trouble"].decode(errors="replace").splitlines()
    if parts["late"]:
        late = parts["late"].decode(errors="replace")
        trouble += ["ran out of time"] if "sending signal" in late else late.splitlines()
    entries, more = tree if tree is not None else _listed(parts)
    return Outcome(
        frame.status,
        _normal(parts["out"], w),
        _normal(parts["err"], w),
        tuple(sorted(_normal_entry(entry, w) for entry in entries)),
        tuple(trouble + more),
    )


# --- normal form: all that is changed of what a case did ----------------------------------------


def _normal(text: bytes, w: bytes) -> bytes:
    """*text* with ``@W@`` for the working directory."""
    return text.replace(w, b"@W@")


def _normal_entry(entry: Entry, w: bytes) -> Entry:
    """*entry* with ``@W@`` in a symlink, whose size follows."""
    if entry.kind != "symlink":
        return entry
    target = _normal(entry.target, w)
    return attrs.evolve(entry, target=target, size=len(target))


# --- looking ------------------------------------------------------------------------------------


def _entry(name: bytes, mode: int, numbers: Sequence[int], target: bytes, content: str) -> Entry:
    kind = _KINDS.get(stat.S_IFMT(mode), oct(stat.S_IFMT(mode)))
    owner, group, size, links = numbers
    if kind not in ("file", "symlink"):
        size = 0  # of a directory it is the volume's affair
    return Entry(name, kind, stat.S_IMODE(mode), owner, group, size, links, target, content)


def _listed(parts: dict[str, bytes]) -> tuple[list[Entry], list[str]]:
    """The tree as the guest's stat, readlink and sha256sum told it."""
    sums = {}
    for line in parts["sums"].split(b"\0")[:-1]:
        digest, _, name = line.partition(b"  ")
        sums[name] = digest.decode()
    # By name: a directory that is read twice need not list in one order. Where a link could not be
    # read there is a line of trouble as well.
    names, links = (parts[part].split(b"\0")[:-1] for part in ("names", "links"))
    targets = dict(zip(names, links, strict=False))
    fields = parts["stat"].split(b"\0")[:-1]
    entries: list[Entry] = []
    for name, kind, uid, gid, size, links, device in zip(*[iter(fields)] * 7, strict=True):
        mode = int(kind, 16)
        target, content = b"", ""
        if stat.S_ISLNK(mode):
            target = targets.get(name, b"?")
        elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            target = b"%d:%d" % tuple(int(number, 16) for number in device.split(b":"))
        elif stat.S_ISREG(mode):
            content = sums.get(name, "unreadable")
        numbers = (int(uid), int(gid), int(size), int(links))
        entries.append(_entry(name.removeprefix(b"./"), mode, numbers, target, content))
    return entries, []


def _look(top: Path) -> tuple[list[Entry], list[str]]:
    """The tree at *top*, looked at from outside."""
    trouble: list[str] = []
    root = os.fsencode(top)
    if not os.path.lexists(root):
        return [], []
    places = [root]
    for parent, folders, files in os.walk(root, onerror=lambda error: trouble.append(str(error))):
        places += [os.path.join(parent, name) for name in (*folders, *files)]
    entries = []
    for place in places:
        name = place[len(root) + 1 :] or b"."
        try:
            found = os.lstat(place)
            target, content = b"", ""
            if stat.S_ISLNK(found.st_mode):
                target = os.readlink(place)
            elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
                target = b"%d:%d" % (os.major(found.st_rdev), os.minor(found.st_rdev))
            elif stat.S_ISREG(found.st_mode):
                with open(place, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            trouble.append(str(error))
            continue
        numbers = (found.st_uid, found.st_gid, found.st_size, found.st_nlink)
        entries.append(_entry(name, found.st_mode, numbers, target, content))
    return entries, trouble


def _remove(path: Path) -> None:
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
    shutil.rmtree(path, ignore_errors=True)


# --- comparing ----------------------------------------------------------------------------------


def reason(needs: frozenset[str], lacks: frozenset[str]) -> str | None:
    """Why what *needs* some of `NEEDS` may differ where they are lacking; None where it may not."""
    return "; ".join(NEEDS[need] for need in sorted(needs & lacks)) or None


def compare(expected: Outcome, got: Outcome, lacks: frozenset[str] = frozenset()) -> list[str]:
    """What differs, in words; nothing where nothing does.

    Of the trees modes, owners and directories' link counts are left out where the volume *lacks*
    them: they differ for every case there.
    """
    words = []
    if expected.status != got.status:
        words.append(f"exit status {got.status}, expected {expected.status}")
    if expected.out != got.out:
        words.append(_difference("stdout", expected.out, got.out))
    if expected.err != got.err:
        words.append(_difference("stderr", expected.err, got.err))
    wanted = {entry.name: entry for entry in expected.tree}
    found = {entry.name: entry for entry in got.tree}
    for name in sorted(wanted.keys() | found.keys()):
        shown = os.fsdecode(name)
        if name not in found:
            words.append(f"{shown!r} ({wanted[name].kind}) is missing")
        elif name not in wanted:
            words.append(f"{shown!r} ({found[name].kind}) should not be there")
        else:
            words += _entry_differences(shown, wanted[name], found[name], lacks)
    for line in expected.trouble:
        if line not in got.trouble:
            words.append(f"expected, but did not happen: {line}")
    words += [line for line in got.trouble if line not in expected.trouble]
    return words


def _difference(name: str, want: bytes, have: bytes) -> str:
    """The first line that differs."""
    pairs = zip(want.splitlines(True), have.splitlines(True), strict=False)
    number = 0
    for number, (left, right) in enumerate(pairs, 1):
        if left != right:
            return f"{name} line {number} is {right[:200]!r}, expected {left[:200]!r}"
    if len(have) < len(want):
        return f"{name} ends after line {number}, expected {want[len(have) :][:200]!r} more"
    return f"{name} goes on after line {number} with {have[len(want) :][:200]!r}"


def _entry_differences(name: str, want: Entry, have: Entry, lacks: frozenset[str]) -> Iterator[str]:
    if want.kind != have.kind:
        yield f"{name!r} is a {have.kind}, expected a {want.kind}"
        return
    if want.mode != have.mode and "modes" not in lacks:
        yield f"{name!r} has mode {have.mode:04o}, expected {want.mode:04o}"
    owners = [f"{entry.owner}:{entry.group}" for entry in (have, want)]
    if owners[0] != owners[1] and "owners" not in lacks:
        yield f"{name!r} belongs to {owners[0]}, expected {owners[1]}"
    if want.size != have.size:
        yield f"{name!r} has {have.size} bytes, expected {want.size}"
    counts = "directory-links" if want.kind == "directory" else "hard-links"
    if want.links != have.links and counts not in lacks:
        yield f"{name!r} has {have.links} links, expected {want.links}"
    if want.target != have.target:
        what = "points to" if want.kind == "symlink" else "is device"
        yield f"{name!r} {what} {have.target!r}, expected {want.target!r}"
    if want.content != have.content:
        detail = ""
        if "unreadable" in (want.content, have.content):
            detail = f": {have.content}, expected {want.content}"
        elif want.size == have.size:
            detail = f", both of {want.size} bytes"
        yield f"{name!r} has another content{detail}"
