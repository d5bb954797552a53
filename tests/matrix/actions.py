"""Suites whose items are functions: each works in a directory of its own, through a real mount.

The directory lies in the sysroot or on the host underneath, as the cell says. An item has failed
too where it takes longer than `ITEM_SECONDS`, where the server has logged an error that was not
announced, or where somebody was at the canaries beside the sysroot and beside the host. Items that
pass leave their server to the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from sidecar import volume
from sidecar.volume import Traits
from tests import caches
from tests.children import Child, start_child
from tests.matrix.parts import Parts, divided
from tests.matrix.suite import Setting, Tally
from tests.matrix.watch import Watch
from tests.mounts import Mount, kill_servers
from tests.waiting import comes

__all__ = ["ITEM_SECONDS", "Action", "Actions", "Stage", "Unable", "become"]

ITEM_SECONDS: Final = 120.0
"""After so long an item's servers are killed, so that it fails instead of waiting for ever."""

T = TypeVar("T")


class Unable(Exception):
    """The volume cannot do what an item is about; the message is the reason."""


@attrs.frozen
class Action:
    """A named item: what it does, and what the volume has to be able to do for it (of `NEEDS`)."""

    name: str
    work: Callable[[Stage], None]
    needs: frozenset[str] = frozenset()


@attrs.frozen
class Canary:
    """A directory that no server has any business in."""

    path: Path
    state: dict[str, tuple[object, ...]] = attrs.field(init=False)
    watch: Watch = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path.mkdir(mode=0o700)
        self.path.chmod(0o777)
        for name in ("file", "sub/file"):
            file = self.path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text("canary")
        object.__setattr__(self, "state", _state(self.path))
        object.__setattr__(self, "watch", Watch(self.path, self.path / "sub"))

    def check(self) -> None:
        """Raise AssertionError where it was opened, read or changed."""
        events = self.watch.events()
        assert not events, f"somebody was at {self.path}: {events}"
        found = _state(self.path)
        # Looking at it is an event as well.
        self.watch.events()
        assert found == self.state, f"{self.path} is {found}, was {self.state}"


def _state(top: Path) -> dict[str, tuple[object, ...]]:
    state: dict[str, tuple[object, ...]] = {}
    for path in (top, *sorted(top.rglob("*"))):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        state[str(path)] = (
            seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, seen.st_nlink, content,
        )  # fmt: skip
    return state


@attrs.define
class Stage:
    """Where one item works: `point` is its directory through the mount, `lower` what that is.

    `path` is where a guest whose root the mount is finds it. `outside` are the canaries: beside
    the sysroot on its volume, and beside the host.
    """

    setting: Setting
    name: str
    options: tuple[str, ...]
    lower: Path
    path: str
    outside: tuple[Path, Path]
    traits: Traits
    _stack: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    _mount: Mount | None = None
    _owner: int = attrs.field(factory=os.getpid)
    _is_own: bool = False

    @property
    def cut(self) -> bool:
        """Whether seconds count."""
        return self.setting.cut

    @property
    def seconds(self) -> float:
        """How long a race is run."""
        return 0.4 if self.cut else 3.0

    @property
    def in_sysroot(self) -> bool:
        """Whether the item works in the sysroot."""
        return self.setting.cell.place == "sysroot"

    @property
    def lacks(self) -> frozenset[str]:
        """What the volume of the item's directory cannot do."""
        return self.setting.lacks if self.in_sysroot else frozenset()

    @property
    def indexed(self) -> bool:
        """Whether stored names may differ from guest names where the item works."""
        return self.in_sysroot and not self.traits.transparent

    @property
    def mount(self) -> Mount:
        """The mount of this item; made when first asked for."""
        if self._mount is None:
            assert os.getpid() == self._owner, "a forked child would leave its mount behind"
            self._mount = self._stack.enter_context(self.setting.mounted(*self.options))
        return self._mount

    @property
    def point(self) -> Path:
        """The item's directory, seen through the mount."""
        return self.mount.point / self.path[1:]

    def remount(self, descriptors: int | None = None) -> None:
        """End the server in order, start another; with so many *descriptors* for this item only."""
        self.close()
        self._is_own = descriptors is not None
        self._mount = self._stack.enter_context(
            self.setting.mounted(*self.options, descriptors=descriptors)
        )

    def second(self) -> Path:
        """The item's directory through a second mount of the same sysroot."""
        mount = self._stack.enter_context(self.setting.mounted(*self.options))
        return mount.point / self.path[1:]

    def forget(self) -> None:
        """Have the kernel forget the inodes that nobody uses."""
        caches.drop()

    def open_files(self) -> list[str]:
        """What the server's descriptors lead to."""
        found = []
        for fd in Path(f"/proc/{self.mount.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(fd))
        return sorted(found)

    def comes_back(self, descriptors: int) -> bool:
        """Whether the server soon has no more than so many descriptors."""

        def there() -> bool:
            self.forget()
            return self.mount.descriptors() <= descriptors

        return comes(there)

    def leave(self) -> None:
        """The item is done: the next one may have its server. Raises AssertionError as `close`."""
        if self.mount.process.poll() is not None:
            raise AssertionError("the server has died")
        self.mount.check_log()
        # lowntfs-3g gives a new directory the number of a removed one: where somebody still has
        # that open, and a server has, the kernel takes the new one for removed.
        if self._is_own or self.setting.volume.kind == "lowntfs":
            self.close()

    def close(self) -> None:
        """End the servers. Raises AssertionError where one complained."""
        self._mount = None
        self._is_own = False
        self._stack.close()

    def root(self, root: Path) -> Path:
        """*root*, made here: a root directory in which the item's directory is, as `path`."""
        (root / self.path[1:]).mkdir(parents=True)
        (root / self.path[1:]).chmod(0o777)
        root.chmod(0o755)
        return root

    def guest(self, work: Callable[[], object], **who: Any) -> Child:
        """Start *work* in a process whose root is the mount, as `become`."""
        root = self.mount.point
        return start_child(lambda: become(work, root, **who))


def become(
    work: Callable[[], T],
    root: Path,
    *,
    uid: int = 0,
    gid: int = 0,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
) -> T:
    """Do *work* with *root* as root directory and as somebody else: for a forked child."""
    os.chroot(root)
    os.chdir("/")
    os.umask(umask)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    return work()


@attrs.frozen
class Actions(Parts[Action]):
    """Items that are functions of a `Stage`."""

    guests: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run the named actions, each in a directory of its own."""
        on_host = setting.cell.place == "host"
        outside = (setting.volume.path / "outside", setting.base / "outside")
        canaries = [Canary(path) for path in outside]
        fd = os.open(setting.sysroot, os.O_PATH | os.O_DIRECTORY)
        try:
            traits = volume.probe(fd)
        finally:
            os.close(fd)
        top = setting.host if on_host else setting.sysroot
        stage = Stage(setting, "", self.options, top, "/", outside, traits)
        can, skipped = divided(self.wanted(items), stage.lacks)
        passed, failures = list[str](), dict[str, Sequence[str]]()
        for action in can:
            stage = attrs.evolve(
                stage, name=action.name, lower=top / action.name, path=f"/{action.name}"
            )
            try:
                with _place(stage.lower):
                    _perform(action, stage, canaries)
                passed.append(action.name)
            except Unable as reason:
                skipped[action.name] = str(reason)
            except Exception as failure:
                failures[action.name] = _words(failure)
        try:
            stage.close()
        except AssertionError as failure:
            failures["(the end of the server)"] = _words(failure)
        for canary in canaries:
            canary.watch.close()
            shutil.rmtree(canary.path)
        return Tally(passed, failures, skipped)


@contextlib.contextmanager
def _place(lower: Path) -> Iterator[None]:
    lower.mkdir()
    lower.chmod(0o777)
    try:
        yield
    finally:
        shutil.rmtree(lower)


def _perform(action: Action, stage: Stage, canaries: Sequence[Canary]) -> None:
    watchdog = threading.Timer(ITEM_SECONDS, kill_servers)
    watchdog.daemon = True
    watchdog.start()
    try:
        # Before anything is forked.
        stage.point.stat()
        action.work(stage)
        stage.leave()
    except Unable:
        raise
    except BaseException:
        # The next item has another one.
        stage.close()
        raise
    finally:
        watchdog.cancel()
    for canary in canaries:
        canary.check()


def _words(failure: Exception) -> list[str]:
    """What went wrong, and where in the tests."""
    said = "".join(traceback.format_exception_only(failure)).splitlines()
    where = "".join(traceback.format_tb(failure.__traceback__)[-4:]).splitlines()
    if failure.__context__ is not None:
        said += ["after:", *"".join(traceback.format_exception(failure.__context__)).splitlines()]
    return [line[:2000] for line in (*said[:40], *where)]
