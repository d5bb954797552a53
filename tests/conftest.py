"""What tests are given: workplaces, mounts, volumes and guests, taken away afterwards.

A server that logs an error that the test did not announce (`Mount.expects`) fails the test, and
one that hangs is killed by a watchdog, so that a test fails instead of waiting for ever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from sidecar.volume import PROBE_PREFIX
from sysroot_fs.cli.doors import DOORS, VARIABLE
from tests.caseless import Volumes
from tests.matrix.guests import unpack
from tests.matrix.volumes import Volume, open_volume
from tests.mounts import Mount, Mounter, watchdog
from tests.runs import Guest

FOLDING: Final = ("zfs", "zfs-formd", "exfat", "lowntfs")
"""The kinds of volume that take Foo and foo for one name."""

TEST_SECONDS: Final = 90.0
"""Seconds after which a test's servers are killed."""

# A shell that starts the tests in the background has them ignore ^C and ^\\, which everything that
# they start would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def _patience(test: pytest.Item) -> float:
    marker = test.get_closest_marker("patience")
    return float(marker.args[0]) if marker else TEST_SECONDS


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that not even the watchdog gets out of ends its worker, and says where it was."""
    faulthandler.dump_traceback_later(2 * _patience(item) + 30, exit=True, file=2)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_sessionstart(session: pytest.Session) -> None:
    """A run that takes far too long ends, and says what came of it so far."""
    seconds = int(os.environ.get("SYSROOT_FS_TEST_SECONDS", "0"))
    if seconds and not hasattr(session.config, "workerinput"):

        def give_up(*_: object) -> None:
            pytest.exit(f"the tests have taken {seconds} seconds", 1)

        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(seconds)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several workers share the tests, the longest come first: the others fill the rest."""
    if hasattr(config, "workerinput"):
        items.sort(key=_patience, reverse=True)


@pytest.fixture(autouse=True)
def _watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kill the servers of a test that takes too long: its hanging calls fail then.

    A test that is meant to take longer says so: ``@pytest.mark.patience(SECONDS)``.
    """
    with watchdog(_patience(request.node)):
        yield


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


@pytest.fixture(scope="session", params=DOORS)
def door(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each door in turn, for every mount that does not ask for one."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = request.param
    yield request.param
    if before is None:
        del os.environ[VARIABLE]
    else:
        os.environ[VARIABLE] = before


@pytest.fixture
def mounted(door: str, workplace: Path) -> Iterator[Mounter]:
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


def _new_directory(base: Path, prefix: str) -> Path:
    # A fixture may be set up several times: where its parameters change, and come back.
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    made.chmod(0o755)
    return made


@pytest.fixture(scope="session")
def stage(door: str, session_workplace: Path) -> Iterator[Mount]:
    """One mount on a plain volume for every test that needs no other options."""
    work = _new_directory(session_workplace, f"stage-{door}-")
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
def volume(request: pytest.FixtureRequest, door: str, session_workplace: Path) -> Iterator[Volume]:
    """A real volume of each kind that folds case, for each door."""
    with open_volume(request.param, session_workplace / "volumes") as opened:
        yield opened


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volumes]:
    """Volumes of every kind for one module, each opened when first asked for."""
    base = tmp_path_factory.mktemp("volumes")
    with contextlib.ExitStack() as stack:
        yield Volumes(base, stack)
        gc.collect()  # descriptors in garbage would keep the volumes busy


@pytest.fixture(scope="session")
def folding_stage(volume: Volume, session_workplace: Path) -> Iterator[Mount]:
    """One mount of each folding volume."""
    work = _new_directory(session_workplace, f"folding-{volume.kind}-")
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
    # What a server leaves that is killed while it measures the volume is no part of the guest.
    leftovers = shutil.ignore_patterns(f"{os.fsdecode(PROBE_PREFIX)}*")
    shutil.copytree(guest_root.sysroot, own.sysroot, symlinks=True, ignore=leftovers)
    return own


# --- what is said meanwhile -------------------------------------------------------------------

_terminals: list[pytest.TerminalReporter] = []


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Remember where to say what fails: in the process that shows the progress."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter) and not hasattr(config, "workerinput"):
        _terminals.append(reporter)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name what has failed at once: whoever stops a run, or finds it stopped, knows that much."""
    if report.failed:
        for terminal in _terminals:
            terminal.write_line(f"\n{report.when} of {report.nodeid} failed", red=True)


# --- the closing words ------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the cells of the matrix passed, and what was skipped in them and why."""
    told = [
        str(text)
        for outcome in ("passed", "failed")
        for found in terminalreporter.getreports(outcome)
        for key, text in found.user_properties
        if key == "matrix"
    ]
    if not told:
        return
    terminalreporter.section("matrix")
    lines = [text.splitlines() for text in told]
    for one in lines:
        terminalreporter.write_line(one[0])
    for line in (line for one in lines for line in one[1:] if line.startswith("skipped ")):
        terminalreporter.write_line(line)
