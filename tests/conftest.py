"""Mounts for tests: a real server in a process of its own, unmounted and checked afterwards.

A server that logs an error that the test did not announce (`Mount.expects`) fails the test, and
one that hangs is killed by a watchdog, so that a test fails instead of waiting for ever.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import pytest

from tests.matrix.guests import unpack
from tests.matrix.volumes import Volume, open_volume
from tests.runs import Guest

T = TypeVar("T")

FOLDING: Final = ("zfs", "zfs-formd", "exfat", "lowntfs")
"""The kinds of volume that take Foo and foo for one name."""

PATIENCE: Final = 20.0
"""Seconds for a server to come up or to go."""
TEST_SECONDS: Final = 90.0
"""Seconds after which a test's servers are killed."""

_ALARMING: Final = re.compile(r" (ERROR|CRITICAL) |Traceback|^\w*Error: ", re.MULTILINE)
# A shell that starts the tests in the background has them ignore ^C and ^\\, which everything that
# they start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_live: dict[int, Mount] = {}


# --- children ---------------------------------------------------------------------------------


@attrs.frozen
class Child:
    """A forked child that runs one function; `result` waits and gives back what came of it."""

    pid: int
    pipe: int

    def result(self) -> Any:
        """What the function returned; what it raised is raised here."""
        with open(self.pipe, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the child ended without an answer ({status:#x})"
        good, value = pickle.loads(data)
        if not good:
            raise value
        return value


def start_child(
    work: Callable[[], object],
    *,
    uid: int = 0,
    gid: int = 0,
    groups: tuple[int, ...] = (),
    umask: int = 0o022,
) -> Child:
    """Fork a process that is somebody else and runs *work*."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return Child(pid, reader)
    answer: tuple[bool, object] = (False, RuntimeError("no answer"))
    try:
        os.close(reader)
        os.umask(umask)
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        answer = (True, work())
    except BaseException as error:
        answer = (False, error)
    finally:
        # Never back into the test run: its buffers and exit handlers are the parent's.
        try:
            data = pickle.dumps(answer)
        except Exception as error:
            data = pickle.dumps((False, RuntimeError(f"{answer!r}: {error!r}")))
        with contextlib.suppress(OSError), open(writer, "wb") as pipe:
            pipe.write(data)
        os._exit(0)


def in_child(work: Callable[[], T], **who: Any) -> T:
    """What *work* returns in a process that is somebody else; see `start_child`."""
    result: T = start_child(work, **who).result()
    return result


def code_of(call: Callable[..., object], *arguments: Any, **more: Any) -> int:
    """The errno with which *call* fails, 0 where it does not."""
    try:
        call(*arguments, **more)
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


# --- mounts -----------------------------------------------------------------------------------


@attrs.define(eq=False)
class Mount:
    """A mounted sysroot: where it is seen, what it is made of, and its server."""

    sysroot: Path
    host: Path
    point: Path
    log: Path
    process: subprocess.Popen[bytes]
    expected: list[str] = attrs.Factory(list)
    _read: int = 0

    def expects(self, pattern: str) -> None:
        """Announce error lines of the server's log, a regular expression."""
        self.expected.append(pattern)

    def check_log(self) -> None:
        """Fail where the server has logged an error that was not announced."""
        text = self.log.read_text("utf-8", "replace")
        fresh, self._read = text[self._read :], len(text)
        lines = [
            line
            for line in fresh.splitlines()
            if _ALARMING.search(line)
            and not any(re.search(pattern, line) for pattern in self.expected)
        ]
        assert not lines, f"the server logged:\n{fresh}"

    def kill(self) -> None:
        """The server dies without a last word; what is mounted is taken away."""
        self.process.kill()
        self.process.wait()
        detach(self.point)
        _live.pop(self.process.pid, None)

    def stop(self) -> None:
        """Unmount as a user's signal does; the server has to end in order."""
        if self.process.pid not in _live:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server hangs:\n{self.log.read_text()}") from None
        finally:
            detach(self.point)
            _live.pop(self.process.pid, None)
        assert status == 0, f"exit status {status}:\n{self.log.read_text()}"


def mounted_type(point: Path) -> str | None:
    """The filesystem type of the mount at *point*, None where nothing is mounted."""
    wanted = os.fsencode(point)
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        if fields[4] == wanted:
            found = fields[fields.index(b"-", 6) + 1].decode()
    return found


def detach(point: Path) -> None:
    """Take away what is mounted at *point*, whoever uses it."""
    while mounted_type(point) is not None:
        subprocess.run(["umount", "-l", point], check=True)


def start(
    sysroot: Path,
    host: Path,
    point: Path,
    *options: str,
    log: Path,
    descriptors: int | None = None,
    module: str = "sysroot_fs",
) -> Mount:
    """Start a server (*module*) in the foreground and wait until its mount is there."""
    settings = ",".join([f"host={host}", f"log={log}", *options])
    command = [sys.executable, "-m", module, "mount", "-f"]
    command += [str(sysroot), str(point), "-o", settings]
    if descriptors is not None:
        # The hard limit too: the server raises the other to it.
        command = ["prlimit", f"--nofile={descriptors}:{descriptors}", *command]
    with open(log, "ab") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=_CHECKOUT
        )
    mount = Mount(sysroot, host, point, log, process)
    _live[process.pid] = mount
    deadline = time.monotonic() + PATIENCE
    with open("/proc/self/mountinfo", "rb") as table:
        # The kernel reports changes of this table to poll(2) as an error condition.
        changes = select.poll()
        changes.register(table, select.POLLERR | select.POLLPRI)
        while mounted_type(point) != "fuse.sysroot":
            if process.poll() is not None or time.monotonic() > deadline:
                mount.kill()
                raise AssertionError(f"no mount:\n{log.read_text()}")
            changes.poll(50)
    return mount


_CHECKOUT: Final = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Kill the servers of a test that takes too long: its hanging calls fail then."""

    def bark() -> None:
        for pid in list(_live):
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(TEST_SECONDS, bark)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def _open_to_all(base: Path) -> bool:
    return all(place.stat().st_mode & stat.S_IXOTH for place in (base, *base.parents))


@contextlib.contextmanager
def _open_workplace() -> Iterator[Path]:
    # Not pytest's own, nor a TMPDIR of one user's: shut for the users that some tests become.
    bases = (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp"))
    base = next(filter(_open_to_all, bases))
    work = Path(tempfile.mkdtemp(prefix="sysroot-fs-test-", dir=base)).resolve()
    work.chmod(0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work)


@pytest.fixture(scope="session")
def session_workplace() -> Iterator[Path]:
    """A directory for the whole run that every user can enter."""
    with _open_workplace() as work:
        yield work


@pytest.fixture
def workplace() -> Iterator[Path]:
    """A directory for one test that every user can enter."""
    with _open_workplace() as work:
        yield work


class Mounter:
    """Makes mounts below one directory and takes them away again."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.mounts: list[Mount] = []

    def __call__(
        self,
        *options: str,
        sysroot: Path | None = None,
        host: Path | None = None,
        descriptors: int | None = None,
        module: str = "sysroot_fs",
    ) -> Mount:
        """Mount *sysroot* over *host*; both are new empty directories where not given."""
        number = len(self.mounts)
        made = [self.work / f"{what}-{number}" for what in ("sysroot", "host", "point")]
        sysroot, host = sysroot or made[0], host or made[1]
        for directory in (sysroot, host, made[2]):
            directory.mkdir(exist_ok=True)
        log = self.work / f"log-{number}"
        self.mounts.append(
            start(sysroot, host, made[2], *options, log=log, descriptors=descriptors, module=module)
        )
        return self.mounts[-1]

    def close(self) -> None:
        """Stop every server; the first complaint is raised when all are gone."""
        complaints: list[AssertionError] = []
        for mount in reversed(self.mounts):
            try:
                mount.stop()
                mount.check_log()
            except AssertionError as complaint:
                complaints.append(complaint)
        if complaints:
            raise complaints[0]


@pytest.fixture
def mounted(workplace: Path) -> Iterator[Mounter]:
    """Mount a sysroot with ``mounted("option=value", sysroot=.., host=..)``."""
    mounter = Mounter(workplace)
    try:
        yield mounter
    finally:
        mounter.close()


# --- places on the plain volume ---------------------------------------------------------------


@attrs.frozen
class Spot:
    """A fresh directory: where the test works, where it lies on disk, and in which layer."""

    path: Path
    lower: Path
    kind: str


@pytest.fixture(scope="session")
def stage(session_workplace: Path) -> Iterator[Mount]:
    """One mount on a plain volume for every test that needs no other options."""
    work = session_workplace / "stage"
    work.mkdir()
    mounter = Mounter(work)
    try:
        yield mounter()
    finally:
        mounter.close()


_serial = iter(range(1_000_000))


@pytest.fixture(params=["plain", "sysroot", "host"])
def spot(request: pytest.FixtureRequest, stage: Mount, session_workplace: Path) -> Iterator[Spot]:
    """A fresh directory on a plain disk, in the sysroot and on the host behind the mount.

    What is asserted of all three is what Linux does.
    """
    name = f"spot-{next(_serial)}"
    plain = session_workplace / "plain"
    plain.mkdir(exist_ok=True)
    lower = {"plain": plain, "sysroot": stage.sysroot, "host": stage.host}[request.param] / name
    lower.mkdir()
    path = lower if request.param == "plain" else stage.point / name
    yield Spot(path, lower, request.param)
    stage.check_log()


@pytest.fixture
def place(spot: Spot) -> Path:
    """The directory of `spot`."""
    return spot.path


# --- folding volumes --------------------------------------------------------------------------


@pytest.fixture(scope="session", params=FOLDING)
def volume(request: pytest.FixtureRequest, session_workplace: Path) -> Iterator[Volume]:
    """A real volume of each kind that folds case."""
    with open_volume(request.param, session_workplace / "volumes") as opened:
        yield opened


@pytest.fixture(scope="session")
def folding_stage(volume: Volume, session_workplace: Path) -> Iterator[Mount]:
    """One mount of each folding volume."""
    work = session_workplace / f"folding-{volume.kind}"
    work.mkdir()
    mounter = Mounter(work)
    sysroot = volume.path / "stage"
    try:
        yield mounter(sysroot=sysroot)
    finally:
        mounter.close()


@pytest.fixture
def folded(folding_stage: Mount) -> Iterator[Spot]:
    """A fresh directory in a sysroot that lies on a folding volume."""
    name = f"spot-{next(_serial)}"
    lower = folding_stage.sysroot / name
    lower.mkdir()
    yield Spot(folding_stage.point / name, lower, "sysroot")
    folding_stage.check_log()


# --- guests -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def guest_root(session_workplace: Path) -> Guest:
    """The musl guest over an empty host, for the whole run: nobody writes to it."""
    made = Guest(session_workplace / "guest", session_workplace / "guest-host")
    made.host.mkdir()
    unpack(made.sysroot)
    return made


@pytest.fixture
def guest(guest_root: Guest, workplace: Path) -> Guest:
    """A copy of the musl guest over an empty host, to write to."""
    own = Guest(workplace / "guest", workplace / "host")
    own.host.mkdir()
    shutil.copytree(guest_root.sysroot, own.sysroot, symlinks=True)
    return own
