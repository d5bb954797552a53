"""Attacks with links: planted, or put in the place of files and directories while they are used.

The guest's root is the mount, so a link that it follows itself leads nowhere else; only the server
could be led outside, where the canaries are.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.children import start_child
from tests.matrix.actions import Action, Stage, become
from tests.matrix.turmoil import again_and_again, attempt, swap

_LINKS: Final = frozenset({"symlinks"})
_CLIMB: Final = "../" * 30
_PATIENCE: Final = 15.0
"""Seconds until a guest has met its victim, of which a link takes the place half of the time."""


def _targets(stage: Stage, what: str) -> list[str]:
    return [
        text
        for place in stage.outside
        for text in (str(place / what), f"{_CLIMB}{str(place / what)[1:]}")
    ]


def _use_directory(path: Path) -> list[Callable[[], object]]:
    """What a guest does in a directory, each call by its path."""
    create = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    return [
        lambda: os.close(os.open(path / "file", os.O_RDONLY)),
        lambda: os.close(os.open(path / "file", create, 0o666)),
        lambda: os.close(os.open(path / "new", create, 0o666)),
        lambda: os.mkdir(path / "directory"),
        lambda: os.symlink("target", path / "link"),
        lambda: os.link(path / "new", path / "hard"),
        lambda: os.mkfifo(path / "fifo"),
        lambda: os.rename(path / "new", path / "moved"),
        lambda: os.truncate(path / "file", 3),
        lambda: os.chmod(path / "file", 0o666),
        lambda: os.chown(path / "file", 0, 0),
        lambda: os.utime(path / "file"),
        lambda: os.setxattr(path / "file", b"user.x", b"y"),
        lambda: os.listdir(path),
        lambda: os.chmod(path, 0o777),
        *(
            functools.partial(os.unlink, path / name)
            for name in ("link", "hard", "fifo", "moved", "new")
        ),
        lambda: os.rmdir(path / "directory"),
    ]


def _use_file(path: Path) -> list[Callable[[], object]]:
    """What a guest does with a file."""

    def opened(flags: int) -> None:
        fd = os.open(path, flags | os.O_NONBLOCK)
        with contextlib.closing(os.fdopen(fd, "rb" if flags == os.O_RDONLY else "wb")) as file:
            if flags == os.O_RDONLY:
                assert b"canary" not in (file.read() or b"")
            else:
                file.write(b"inside")

    return [
        lambda: opened(os.O_RDONLY),
        lambda: opened(os.O_WRONLY),
        lambda: opened(os.O_WRONLY | os.O_TRUNC),
        lambda: opened(os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        lambda: os.truncate(path, 6),
        lambda: os.chmod(path, 0o666),
        lambda: os.chown(path, 0, 0),
        lambda: os.utime(path),
        lambda: os.setxattr(path, b"user.x", b"y"),
        lambda: os.lstat(path),
        lambda: os.readlink(path),
    ]


def _go_on(works: list[Callable[[], object]], seconds: float, patience: float) -> int:
    """Call them in turn for so long; how often one of them worked.

    Where none has, they get *patience* seconds more for one that does.
    """
    worked = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end + (0.0 if worked else patience):
        for work in works:
            with contextlib.suppress(OSError):
                work()
                worked += 1
    return worked


def _swapped(
    stage: Stage,
    *,
    below: bool,
    use: Callable[[Path], list[Callable[[], object]]],
    make: Callable[[Path], None],
    what: str,
) -> None:
    """Links to the canaries take the place of *victim* and go, while a guest works with it."""
    lower, guest = stage.lower, Path(stage.path)
    make(lower / "victim")
    for number, target in enumerate(_targets(stage, what)):
        (lower / f"link-{number}").symlink_to(target)
    if use is _use_file:
        os.mkfifo(lower / "link-fifo")
    links = sorted(path.name for path in lower.glob("link-*"))

    def disturb(where: Path) -> None:
        for link in links:
            swap(where / "victim", where / link)
            swap(where / "victim", where / link)

    # Before the turmoil: the mount is then the guest's root.
    point = stage.mount.point
    work = functools.partial(disturb, lower)
    if not below:
        work = functools.partial(_disturb_inside, disturb, point, guest)
    # Where names are remembered for long, what changed below is not looked at again; by default
    # one that was a link is taken for it as long as the item runs.
    remembers = below and stage.setting.cell.mode == "long"
    patience = 0.0 if remembers else _PATIENCE
    with again_and_again(work):
        users = [
            stage.guest(lambda: _go_on(use(guest / "victim"), stage.seconds, patience))
            for _ in range(2)
        ]
        worked = sum(user.result() for user in users)
    assert worked or remembers, "no call of the guest ever met its victim"
    kinds = {stat.S_IFMT(path.lstat().st_mode) for path in lower.iterdir()}
    assert stat.S_IFLNK in kinds, "the links are gone"
    # The server is as good as before.
    (stage.point / "afterwards").write_text("good")
    assert (lower / "afterwards").read_text() == "good"


_inside: list[Path] = []


def _disturb_inside(disturb: Callable[[Path], None], point: Path, guest: Path) -> None:
    if not _inside:
        become(lambda: _inside.append(guest), point)
    disturb(guest)


def _make_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("inside")


def directories_swapped_inside(stage: Stage) -> None:
    """The guest itself puts links in the place of a directory that it uses."""
    _swapped(stage, below=False, use=_use_directory, make=_make_directory, what="")


def directories_swapped_below(stage: Stage) -> None:
    """Another writer does so on the volume."""
    _swapped(stage, below=True, use=_use_directory, make=_make_directory, what="")


def files_swapped_inside(stage: Stage) -> None:
    """Links and a fifo come in the place of a file, by the guest."""
    _swapped(stage, below=False, use=_use_file, make=_make_file, what="file")


def files_swapped_below(stage: Stage) -> None:
    """Links and a fifo come in the place of a file, by another writer."""
    _swapped(stage, below=True, use=_use_file, make=_make_file, what="file")


def _make_file(path: Path) -> None:
    path.write_text("inside")


def links_that_are_followed(stage: Stage) -> None:
    """Every way to follow a link by a guest whose root is the mount ends in the mount."""
    texts = [target for what in ("", "file", "sub/file") for target in _targets(stage, what)]
    texts += ["/proc/self/root/../..", "/proc/1/root", "/dev/fd/0", "/..", "/../../.."]
    for number, text in enumerate(texts):
        (stage.lower / f"link-{number}").symlink_to(text)

    def follow() -> list[str]:
        wrong = []
        for number, text in enumerate(texts):
            link = Path(stage.path) / f"link-{number}"
            if os.readlink(link) != text:
                wrong.append(f"{link} reads {os.readlink(link)}")
            for name in ("", "file", "sub/file"):
                for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND):
                    with contextlib.suppress(OSError):
                        os.close(os.open(link / name if name else link, flags))
                        if text.endswith("file") or name:
                            wrong.append(f"{link}/{name} leads to something")
            attempt(lambda link=link: os.truncate(link, 1))  # type: ignore[misc]
            attempt(lambda link=link: os.chmod(link, 0o777))  # type: ignore[misc]
        return wrong

    wrong = stage.guest(follow).result()
    assert not wrong, "\n".join(wrong)


def dots_out_of_the_root(stage: Stage) -> None:
    """.. from any depth ends in the mount's root, where a directory was moved meanwhile, too."""
    (stage.lower / "a/b/c").mkdir(parents=True)

    def climb() -> list[str]:
        os.chdir(f"{stage.path}/a/b/c")
        os.rename(f"{stage.path}/a/b", f"{stage.path}/moved")
        found = []
        for depth in range(1, 40):
            os.chdir("../" * depth)
            found.append(os.getcwd())
            found += [name for name in os.listdir(".") if name == "outside"]
            fd = os.open(".", os.O_PATH | os.O_DIRECTORY)
            for place in stage.outside:
                path = ("../" * depth + str(place / "file")[1:]).encode()
                with contextlib.suppress(FileNotFoundError):
                    os.close(os.open(path, os.O_RDONLY, dir_fd=fd))
                    found.append(f"{path!r} was opened")
            os.close(fd)
        return found

    found = set(stage.guest(climb).result()) - {"/"}
    assert found <= {stage.path, f"{stage.path}/moved"}, found


def a_directory_that_leaves(stage: Stage) -> None:
    """Who stands in a directory that another writer moves away sees nothing beside it."""
    (stage.lower / "sub/in").mkdir(parents=True)
    (stage.lower / "sub/in/file").write_text("inside")
    away = stage.lower.parent.parent / f"away-{os.getpid()}"
    away.mkdir()
    (away / "secret").write_text("secret")
    reader, writer = os.pipe()
    ready, told = os.pipe()

    def stay() -> list[str]:
        os.chdir(f"{stage.path}/sub/in")
        os.write(told, b".")
        os.read(reader, 1)
        found = []
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for path in ("../secret", "../../secret", "../../../secret", "secret"):
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_RDONLY))
                    found.append(path)
            with contextlib.suppress(OSError):
                found += [name for name in os.listdir("..") if name == "secret"]
            time.sleep(0.05)
        return found

    child = stage.guest(stay)
    try:
        os.read(ready, 1)
        os.rename(stage.lower / "sub/in", away / "in")
        os.write(writer, b".")
        assert child.result() == []
    finally:
        for fd in (reader, writer, ready, told):
            os.close(fd)
        for path in (away / "in/file", away / "secret"):
            path.unlink(missing_ok=True)
        for path in (away / "in", away):
            if path.exists():
                path.rmdir()


def parents_renamed(stage: Stage) -> None:
    """Parents change their names, from both sides, while files are made in them: none is lost."""
    names = ("one", "ONE")
    (stage.lower / "top/one").mkdir(parents=True)
    for path in (stage.lower / "top", stage.lower / "top/one"):
        path.chmod(0o777)
    top = Path(stage.path) / "top"

    def back_and_forth(where: Path) -> None:
        os.rename(where / names[0], where / names[1])
        os.rename(where / names[1], where / names[0])

    def make(who: int) -> list[str]:
        made = []
        end = time.monotonic() + stage.seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    path = top / name / f"f-{who}-{number}"
                    try:
                        path.write_text(path.name)
                    except OSError as failure:
                        if attempt(lambda f=failure: _raise(f)):  # type: ignore[misc]
                            raise
                        continue
                    made.append(path.name)
        return made

    point = stage.mount.point
    works = [functools.partial(_disturb_inside, back_and_forth, point, top)]
    with again_and_again(*works):
        makers = [stage.guest(functools.partial(make, number)) for number in range(2)]
        made = {name for maker in makers for name in maker.result()}
    below = start_child(lambda: _listed(stage.lower / "top")).result()
    above = _listed(stage.point / "top")
    assert set(above) == made, f"made and gone: {made - set(above)}; {set(above) - made}"
    assert len(below) == len(above) == len(made)
    for path in (stage.point / "top").glob("*/f-*"):
        assert path.read_text() == path.name


def _raise(failure: OSError) -> None:
    raise failure


def _listed(top: Path) -> list[str]:
    return [name for directory in top.iterdir() for name in os.listdir(directory)]


def removed_while_made(stage: Stage) -> None:
    """Another writer removes what a guest has just made: the server keeps nothing of it."""
    mount = stage.mount

    def make() -> int:
        made = 0
        end = time.monotonic() + stage.seconds
        while time.monotonic() < end:
            for number in range(20):
                path = Path(stage.path) / f"n{number}"
                with contextlib.suppress(OSError):
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    made += 1
                with contextlib.suppress(OSError):
                    os.mkdir(path.with_name(f"d{number}"))
        return made

    def remove() -> None:
        for name in os.listdir(stage.lower):
            path = stage.lower / name
            with contextlib.suppress(OSError):
                (os.rmdir if name.startswith("d") else os.unlink)(path)

    stage.point.stat()
    stage.forget()
    before = mount.descriptors()
    with again_and_again(remove, remove):
        assert stage.guest(make).result()
    remove()
    assert stage.comes_back(before), stage.open_files()


ACTIONS: Final = (
    Action("directories-swapped-inside", directories_swapped_inside, _LINKS),
    Action("directories-swapped-below", directories_swapped_below, _LINKS),
    Action("files-swapped-inside", files_swapped_inside, _LINKS | {"special-files"}),
    Action("files-swapped-below", files_swapped_below, _LINKS | {"special-files"}),
    Action("links-that-are-followed", links_that_are_followed, _LINKS),
    Action("dots-out-of-the-root", dots_out_of_the_root),
    Action("a-directory-that-leaves", a_directory_that_leaves),
    Action("parents-renamed", parents_renamed),
    Action("removed-while-made", removed_while_made),
)
"""What is tried with links and with names that change while they are used."""
