"""Attacks by a user without rights: what a plain file system refuses is refused here, alike.

The same calls are made in a mount and in a chroot of a plain directory, as uid 1000; the errno of
each must be the same, and what is left afterwards too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.children import code_of, in_child, start_child
from tests.matrix.actions import Action, Stage, become

_RIGHTS: Final = frozenset({"modes", "owners"})
_ME: Final[dict[str, Any]] = {"uid": 1000, "gid": 1000, "groups": (1000, 2000)}
_ROOT: Final[dict[str, Any]] = {}
_DIRECTORIES: Final = (
    (0o755, 0, 0),
    (0o700, 0, 0),
    (0o777, 0, 0),
    (0o1777, 0, 0),
    (0o1777, 1000, 1000),
    (0o2775, 0, 2000),
    (0o2777, 1001, 1001),
    (0o711, 1001, 0),
    (0o733, 0, 0),
    (0o3770, 0, 2000),
    (0o705, 0, 2000),
    (0o755, 1000, 0),
    (0o500, 1000, 0),
)
_FILES: Final = (
    ("root644", 0o644, 0, 0),
    ("root600", 0o600, 0, 0),
    ("root666", 0o666, 0, 0),
    ("set-id", 0o6755, 0, 0),
    ("set-id-open", 0o6777, 0, 2000),
    ("group", 0o660, 0, 2000),
    ("other", 0o664, 1001, 1001),
    ("mine", 0o600, 1000, 1000),
    ("mine-of-a-group", 0o2750, 1000, 0),
    ("mine-shut", 0o000, 1000, 1000),
    ("not-the-group", 0o606, 0, 2000),
)

Step = tuple[dict[str, Any], Callable[[Path], object]]


def _compare(stage: Stage, steps: Sequence[Step]) -> None:
    """Do the *steps*, each as somebody, in a plain directory, on the bare volume and in the mount.

    The mount does as the plain directory. It may refuse what the bare volume refuses in the same
    words, and never allows more.
    """
    plain = stage.root(stage.setting.base / f"plain-{stage.name}")
    bare = stage.root(stage.lower.parent / f"bare-{stage.name}") if stage.in_sysroot else plain
    path = Path(stage.path)
    try:
        for number, (who, step) in enumerate(steps):
            done = {
                root: in_child(
                    functools.partial(become, functools.partial(step, path), root, **who)
                )
                for root in dict.fromkeys((plain, bare, stage.mount.point))
            }
            wrong = _differences(done[plain], done[bare], done[stage.mount.point])
            assert not wrong, f"step {number}: {len(wrong)} differ\n" + "\n".join(wrong[:30])
    finally:
        if bare is not plain:
            shutil.rmtree(bare)


def _differences(expected: object, bare: object, got: object) -> list[str]:
    if not all(isinstance(one, dict) for one in (expected, bare, got)):
        return [] if got == expected else [f"{got!r} instead of {expected!r}"]
    assert isinstance(expected, dict) and isinstance(bare, dict) and isinstance(got, dict)
    return [
        f"{key}: {got.get(key)} instead of {expected.get(key)}"
        for key in {**expected, **got}
        if got.get(key) != expected.get(key)
        and (got.get(key) != bare.get(key) or got.get(key) == 0)
    ]


def _look(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        seen = path.lstat()
        is_directory = stat.S_ISDIR(seen.st_mode)
        found[f"mode of {path}"] = oct(seen.st_mode)
        found[f"owners of {path}"] = (seen.st_uid, seen.st_gid)
        found[f"links of {path}"] = None if is_directory else f"{seen.st_nlink} links"
        found[f"content of {path}"] = path.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
    return found


def _build(directories: Sequence[tuple[int, int, int]]) -> Callable[[Path], None]:
    def build(top: Path) -> None:
        for number, (mode, uid, gid) in enumerate(directories):
            directory = top / f"d{number}"
            directory.mkdir()
            for name, permissions, owner, group in _FILES:
                file = directory / name
                file.write_text(name)
                os.chown(file, owner, group)
                file.chmod(permissions)
            for name in ("sub", "sub-mine"):
                (directory / name).mkdir()
            os.chown(directory / "sub-mine", 1000, 1000)
            (directory / "link").symlink_to("root600")
            os.mkfifo(directory / "fifo", 0o600)
            os.chown(directory, uid, gid)
            directory.chmod(mode)
        own = top / "own"
        own.mkdir()
        os.chown(own, 1000, 1000)

    return build


def _opened(path: Path, flags: int) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK, 0o666))


def _made(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT, mode))


def _appended(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    try:
        os.write(fd, b"+")
    finally:
        os.close(fd)


def _allowed(path: Path, mode: int) -> None:
    if not os.access(path, mode):
        raise PermissionError(13, "no")


_OnFile = Callable[[Path, Path], object]
_CALLS: Final[dict[str, _OnFile]] = {
    "stat": lambda p, own: p.lstat(),
    "may-read": lambda p, own: _allowed(p, os.R_OK),
    "may-write": lambda p, own: _allowed(p, os.W_OK),
    "may-execute": lambda p, own: _allowed(p, os.X_OK),
    "read": lambda p, own: _opened(p, os.O_RDONLY),
    "no-atime": lambda p, own: _opened(p, os.O_RDONLY | os.O_NOATIME),
    "append": lambda p, own: _appended(p),
    "create": lambda p, own: _opened(p, os.O_CREAT | os.O_WRONLY),
    "truncate": lambda p, own: os.truncate(p, 2),
    "open-truncating": lambda p, own: _opened(p, os.O_RDONLY | os.O_TRUNC),
    "touch": lambda p, own: os.utime(p),
    "set-times": lambda p, own: os.utime(p, (1, 1)),
    "chmod": lambda p, own: os.chmod(p, 0o6777),
    "chown": lambda p, own: os.chown(p, 1000, -1),
    "chgrp": lambda p, own: os.chown(p, -1, 2000),
    "link-away": lambda p, own: os.link(p, own / f"{p.parent.name}-{p.name}"),
    "rename": lambda p, own: os.rename(p, p.with_name(f"{p.name}-renamed")),
    "rename-back": lambda p, own: os.rename(p.with_name(f"{p.name}-renamed"), p),
    "rename-away": lambda p, own: os.rename(p, own / f"{p.parent.name}-{p.name}-moved"),
    "rename-over": lambda p, own: os.rename(own / f"{p.parent.name}-{p.name}-moved", p),
    "list": lambda p, own: os.listdir(p),
    "rmdir": lambda p, own: os.rmdir(p),
    "unlink": lambda p, own: os.unlink(p),
}
_NEW: Final[dict[str, Callable[[Path], object]]] = {
    "new-file": lambda d: _opened(d / "new-file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "new-directory": lambda d: os.mkdir(d / "new-directory"),
    "new-link": lambda d: os.symlink("x", d / "new-link"),
    "new-fifo": lambda d: os.mkfifo(d / "new-fifo"),
    "new-device": lambda d: os.mknod(d / "new-device", 0o20666, os.makedev(1, 3)),
    "list": lambda d: os.listdir(d),
    "chdir": lambda d: os.chdir(d),
    "chmod": lambda d: os.chmod(d, 0o777),
}


def _attack(top: Path) -> dict[str, int]:
    codes: dict[str, int] = {}
    for directory in [top / f"d{number}" for number in range(len(_DIRECTORIES))]:
        for call, new in _NEW.items():
            codes[f"{call} {directory.name}"] = code_of(new, directory)
        names = [name for name, *_ in _FILES] + ["sub", "sub-mine", "link", "fifo"]
        for name in names:
            path = directory / name
            for call, work in _CALLS.items():
                codes[f"{call} {directory.name}/{name}"] = code_of(work, path, top / "own")
    return codes


def rights_of_names_and_files(stage: Stage) -> None:
    """Every call on every kind of file, in directories open, shut, sticky and of groups."""
    directories = _DIRECTORIES[::3] if stage.cut else _DIRECTORIES
    _compare(stage, [(_ROOT, _build(directories)), (_ME, _attack), (_ROOT, _look)])


def rights_of_open_files(stage: Stage) -> None:
    """/proc/self/fd and descriptors of directories give no right that their opening did not."""

    def build(top: Path) -> None:
        (top / "shut").mkdir(0o755)
        for name, mode in (("secret", 0o600), ("readable", 0o644), ("mine", 0o400)):
            (top / "shut" / name).write_text(name)
            (top / "shut" / name).chmod(mode)
        os.chown(top / "shut/mine", 1000, 1000)

    def attack(top: Path) -> dict[str, int]:
        codes = {}
        directory = os.open(top / "shut", os.O_PATH | os.O_DIRECTORY)
        for name in ("secret", "readable", "mine"):
            held = os.open(name, os.O_PATH, dir_fd=directory)
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
                path = Path(f"/proc/self/fd/{held}")
                codes[f"{name} {flags}"] = code_of(_opened, path, flags)
            codes[f"{name} chmod"] = code_of(os.chmod, f"/proc/self/fd/{held}", 0o777)
            codes[f"{name} unlink"] = code_of(os.unlink, name, dir_fd=directory)
            codes[f"{name} execute"] = code_of(_allowed, Path(f"/proc/self/fd/{held}"), os.X_OK)
        return codes

    # /proc has to be there: the machine's own, seen through no mount.
    plain = stage.setting.base / f"plain-{stage.name}"
    plain.mkdir()
    plain.chmod(0o777)
    build(plain)
    build(stage.point)
    tops = (plain, stage.point)
    expected, got = (in_child(functools.partial(attack, top), **_ME) for top in tops)
    assert not (wrong := _differences(expected, expected, got)), wrong

    # A directory that is shut after it was opened is shut for names in it.
    def late(top: Path) -> tuple[int, int]:
        os.close(reader)
        fd = os.open(top / "shut", os.O_RDONLY | os.O_DIRECTORY)
        os.write(ready, b".")
        os.read(wait, 1)
        return (
            code_of(os.stat, "readable", dir_fd=fd),
            code_of(os.open, "readable", os.O_RDONLY, dir_fd=fd),
        )

    for top in tops:
        reader, ready = os.pipe()
        wait, writer = os.pipe()
        child = start_child(lambda: late(top), **_ME)  # noqa: B023
        os.read(reader, 1)
        (top / "shut").chmod(0o700)
        os.write(writer, b".")
        assert child.result() == (13, 13)
        for fd in (reader, ready, wait, writer):
            os.close(fd)


def rights_of_attributes(stage: Stage) -> None:
    """Extended attributes and ACLs of others' files are not set, removed or (trusted) told."""
    names = ("user.x", "trusted.x", "security.x", "security.capability", "system.posix_acl_access")
    acl = bytes.fromhex("0200000001000700ffffffff04000700ffffffff20000700ffffffff")
    places = ("root644", "root600", "root666", "mine", "directory", "sticky", "link")

    def value(name: str) -> bytes:
        return acl if "acl" in name else b"\1\0\0\2" + b"\0" * 16

    def build(top: Path) -> None:
        files = (("root644", 0o644, 0), ("root600", 0o600, 0), ("root666", 0o666, 0))
        for name, mode, owner in (*files, ("mine", 0o600, 1000)):
            (top / name).write_text("#!/bin/sh\n")
            os.chown(top / name, owner, owner)
            (top / name).chmod(mode)
        for name, mode in (("directory", 0o755), ("sticky", 0o1777)):
            (top / name).mkdir()
            (top / name).chmod(mode)
        (top / "link").symlink_to("root644")
        for name in places[:-1]:
            os.setxattr(top / name, "trusted.secret", b"secret")
            os.setxattr(top / name, "user.seen", b"seen")

    def attack(top: Path) -> dict[str, object]:
        codes: dict[str, object] = {}
        for place in places:
            for name in names:
                path = top / place
                codes[f"set {place} {name}"] = code_of(os.setxattr, path, name, value(name))
                codes[f"get {place} {name}"] = code_of(os.getxattr, path, name)
                codes[f"remove {place} {name}"] = code_of(os.removexattr, path, name)
            codes[f"list {place}"] = sorted(os.listxattr(top / place))
            codes[f"secret {place}"] = code_of(os.getxattr, top / place, "trusted.secret")
        return codes

    _compare(stage, [(_ROOT, build), (_ME, attack), (_ROOT, _look)])


def rights_of_the_new(stage: Stage) -> None:
    """What a user makes is his, with the group that set-gid says, and no set-id bit by stealth."""

    def build(top: Path) -> None:
        for name, mode, gid in (
            ("plain", 0o777, 0),
            ("setgid", 0o2777, 2000),
            ("foreign", 0o2777, 3000),
        ):
            (top / name).mkdir()
            os.chown(top / name, 0, gid)
            (top / name).chmod(mode)

    def attack(top: Path) -> dict[str, object]:
        done: dict[str, object] = {}
        for directory in ("plain", "setgid", "foreign"):
            for mode in (0o644, 0o4755, 0o2755, 0o6777):
                path = top / directory / f"f{mode:o}"
                done[f"open {path}"] = code_of(_made, path, mode)
                done[f"chmod {path}"] = code_of(os.chmod, path, mode)
                done[f"write {path}"] = code_of(_appended, path)
                done[f"mode {path}"] = path.stat().st_mode
                path = top / directory / f"d{mode:o}"
                done[f"mkdir {path}"] = code_of(os.mkdir, path, mode)
                done[f"node {path}"] = code_of(os.mknod, path.with_name(f"n{mode:o}"), mode)
                done[f"chgrp {path}"] = code_of(os.chown, path, -1, 3000)
            unix = socket.socket(socket.AF_UNIX)
            os.chdir(top / directory)
            done[f"socket {directory}"] = code_of(unix.bind, "socket")
            unix.close()
        return done

    _compare(stage, [(_ROOT, build), (_ME, attack), (_ROOT, _look)])


def root_of_others(stage: Stage) -> None:
    """A user that shuts his directory shuts it for other users, whatever root has seen there."""

    def build(top: Path) -> None:
        (top / "home").mkdir(0o700)
        (top / "home/sub").mkdir(0o777)
        (top / "home/sub/file").write_text("secret")
        (top / "home/sub/file").chmod(0o666)
        (top / "home/sub").chmod(0o777)
        assert (top / "home/sub/file").read_text() == "secret"

    def attack(top: Path) -> dict[str, int]:
        file = top / "home/sub/file"
        codes = {name: code_of(work, file, top) for name, work in _CALLS.items()}
        codes["list"] = code_of(os.listdir, file.parent)
        with contextlib.suppress(OSError):
            os.chdir(file.parent)
            codes["entered"] = 1
        return codes

    _compare(stage, [(_ROOT, build), (_ME, attack), (_ROOT, _look)])


ACTIONS: Final = (
    Action(
        "rights-of-names-and-files",
        rights_of_names_and_files,
        _RIGHTS | {"hard-links", "symlinks", "special-files"},
    ),
    Action("rights-of-open-files", rights_of_open_files, _RIGHTS),
    Action("rights-of-attributes", rights_of_attributes, _RIGHTS | {"xattrs", "symlinks"}),
    Action("rights-of-the-new", rights_of_the_new, _RIGHTS | {"special-files"}),
    Action("root-of-others", root_of_others, _RIGHTS),
)
"""What is tried by a user who has no rights to it."""
