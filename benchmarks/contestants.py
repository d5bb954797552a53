"""Who is measured: this project, the file systems beside it, and the bare directory.

Each has a directory of its own with the same content and shows it somewhere. The others are taken
from apt where they are missing; passthrough_ll is built from the sources of libfuse's package and
kept in the cache. They are there twice, as they are by themselves and with everything cached that
they can cache (`+`), since ours is measured so too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from benchmarks.results import NATIVE, Family
from tests import mounts
from tests.matrix.building import GuestBuildError, Runner, get_sources, private_apt, say
from tests.matrix.guest_cache import extract, in_cache
from tests.matrix.volumes import mounts_below

EXCLUSIVE: Final = "coherence=exclusive,host_coherence=exclusive"
LONG: Final = "entry_timeout=1000,attr_timeout=1000,negative_timeout=1000"
PACKAGES: Final = ("bindfs", "fuse-overlayfs", "mergerfs", "proot", "git")

_GOING_SECONDS: Final = 2.0
"""How long one may take to end once it is unmounted; passthrough_ll sometimes never does."""

Command = Callable[["Places", Path], list[str]]
"""What to run in the foreground so that the tree at the places is seen at the path; the second
path is where passthrough_ll was built."""


@frozen
class Places:
    """A contestant's directories below one of its own."""

    work: Path
    shared: Path | None = None
    """A tree that several have, one at a time, instead of one of its own."""

    @property
    def tree(self) -> Path:
        """What is shown; native work is done in it."""
        return self.shared or self.work / "tree"

    @property
    def point(self) -> Path:
        """Where it is shown."""
        return self.work / "point"

    @property
    def empty(self) -> Path:
        """For what has to be given a second directory."""
        return self.work / "empty"

    @property
    def spare(self) -> Path:
        """For what has to be given a third."""
        return self.work / "spare"

    def make(self) -> None:
        """Make the directories that are missing."""
        for path in (self.tree, self.point, self.empty, self.spare):
            path.mkdir(parents=True, exist_ok=True)


@frozen
class Contestant:
    """One column of the tables; `options` are for ours, `command` for the others."""

    name: str
    family: Family
    options: str = ""
    command: Command | None = None
    mounted: bool = True
    """False where it needs no mount before the work."""


def _bindfs(*options: str) -> Command:
    def command(at: Places, built: Path) -> list[str]:
        return ["bindfs", "-f", *options, str(at.tree), str(at.point)]

    return command


def _mergerfs(options: str) -> Command:
    def command(at: Places, built: Path) -> list[str]:
        chosen = f"allow_other,minfreespace=0{options}"
        return ["mergerfs", "-f", "-o", chosen, str(at.tree), str(at.point)]

    return command


def _overlayfs(at: Places, built: Path) -> list[str]:
    layers = f"lowerdir={at.empty},upperdir={at.tree},workdir={at.spare}"
    return ["fuse-overlayfs", "-f", "-o", layers, str(at.point)]


def _passthrough_ll(options: str) -> Command:
    def command(at: Places, built: Path) -> list[str]:
        chosen = f"allow_other,source={at.tree}{options}"
        return [str(built / "passthrough_ll"), "-f", "-o", chosen, str(at.point)]

    return command


_MERGERFS_LONG: Final = (
    ",cache.files=auto-full,cache.entry=1000,cache.attr=1000,cache.negative_entry=1000"
    ",cache.readdir=true,cache.symlinks=true"
)

CONTESTANTS: Final = (
    Contestant(NATIVE, "native", mounted=False),
    Contestant("kernel", "own", "door=kernel"),
    Contestant("kernel+", "own", f"door=kernel,{EXCLUSIVE}"),
    Contestant("pyfuse3", "own", "door=pyfuse3"),
    Contestant("pyfuse3+", "own", f"door=pyfuse3,{EXCLUSIVE}"),
    Contestant("bindfs", "peer", command=_bindfs()),
    Contestant("bindfs+", "peer", command=_bindfs("-o", f"{LONG},kernel_cache")),
    Contestant("passthrough_ll", "peer", command=_passthrough_ll("")),
    Contestant("passthrough_ll+", "peer", command=_passthrough_ll(",cache=always,timeout=1000")),
    Contestant("mergerfs", "peer", command=_mergerfs("")),
    Contestant("mergerfs+", "peer", command=_mergerfs(_MERGERFS_LONG)),
    Contestant("fuse-overlayfs", "peer", command=_overlayfs),
)


def parse_mode(text: str) -> Contestant:
    """One more of ours, written NAME=OPTIONS; ValueError where it is not."""
    name, equals, options = text.partition("=")
    if not (name and equals and options):
        raise ValueError(f"a mode is NAME=OPTIONS, not {text!r}")
    return Contestant(name, "own", options)


# --- getting the others -------------------------------------------------------------------------


def install() -> None:
    """Have apt bring what is missing; RuntimeError says what to install where it cannot."""
    asked = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}=${db:Status-Status} ", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    missing = [name for name in PACKAGES if f"{name}=installed" not in asked]
    if not missing:
        return
    say(f"bench: installing {' '.join(missing)}")
    clean = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Old lists may do; what is not to be had is said by the install.
    subprocess.run(["apt-get", "-qq", "update"], stdin=subprocess.DEVNULL, env=clean, check=False)
    command = ["apt-get", "-qq", "install", "--no-install-recommends", *missing]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=clean, check=False
    )
    if done.returncode:
        raise RuntimeError(f"as root, run: apt-get install {' '.join(missing)}")


def _passthrough_recipe(root: Path, work: Path, run: Runner) -> str:
    (tree,) = get_sources(("fuse3",), work, run, private_apt(work, run))
    flags = run(["pkg-config", "fuse3", "--cflags", "--libs"]).split()
    source = tree / "example/passthrough_ll.c"
    run(["gcc", "-O2", "-w", str(source), "-o", str(root / "passthrough_ll"), *flags])
    return tree.name


def _client_recipe(root: Path, work: Path, run: Runner) -> str:
    source = Path(__file__).parent / "client.c"
    run(["gcc", "-O2", "-Wall", "-Werror", str(source), "-o", str(root / "client")])
    return "1"


def build_peers(into: Path) -> None:
    """Put passthrough_ll into *into*, built first where the cache has none."""
    try:
        extract(
            in_cache("bench-passthrough", "passthrough_ll", _passthrough_recipe), into, "symlink"
        )
    except GuestBuildError as error:
        raise RuntimeError(str(error)) from error


def build_client(into: Path) -> Path:
    """The program that makes and times single calls, from the cache as well."""
    source = (Path(__file__).parent / "client.c").read_bytes()
    extract(in_cache("bench-client", "timing client", _client_recipe, source), into, "symlink")
    return into / "client"


def versions() -> dict[str, str]:
    """Of the packages that the others are from."""
    asked = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *PACKAGES, "fuse3", "gcc"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return dict(line.split(" ", 1) for line in said.splitlines())


# --- running them -------------------------------------------------------------------------------


@frozen
class Usage:
    """What a server has used so far."""

    cpu_ns: int
    switches: int

    def since(self, before: Usage) -> Usage:
        """What it has used since *before*; threads that ended meanwhile have taken theirs along."""
        return Usage(max(0, self.cpu_ns - before.cpu_ns), max(0, self.switches - before.switches))


def parse_schedstat(text: str) -> int:
    """Nanoseconds on a processor, of /proc/PID/schedstat."""
    return int(text.split()[0])


def parse_switches(text: str) -> int:
    """Context switches, wanted and unwanted, of /proc/PID/status."""
    return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)


def usage_of(pid: int) -> Usage:
    """Of all threads of a process."""
    cpu = switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end while it is asked
            cpu += parse_schedstat((task / "schedstat").read_text())
            switches += parse_switches((task / "status").read_text())
    return Usage(cpu, switches)


@define(eq=False)
class Running:
    """A contestant over its tree; `mount` it before `root` is used, and again for cold caches."""

    contestant: Contestant
    at: Places
    built: Path
    server: subprocess.Popen[bytes] | None = None
    _own: mounts.Mount | None = None
    _logs: int = field(default=0)

    @property
    def name(self) -> str:
        """The column."""
        return self.contestant.name

    @property
    def root(self) -> Path:
        """Where work is done."""
        return self.at.tree if self.contestant.family == "native" else self.at.point

    def mount(self) -> None:
        """Begin with cold caches: unmount where it is mounted, then mount."""
        self.stop()
        if not self.contestant.mounted:
            return
        self._logs += 1
        log = self.at.work / f"log-{self._logs}"
        if self.contestant.command is None:
            self._own = mounts.start(
                self.at.tree, self.at.empty, self.at.point, self.contestant.options, log=log
            )
            self.server = self._own.process
            return
        with open(log, "wb") as said:
            self.server = subprocess.Popen(
                self.contestant.command(self.at, self.built),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        self._wait(log)

    def _wait(self, log: Path) -> None:
        assert self.server is not None
        deadline = time.monotonic() + mounts.PATIENCE
        while mounts.mounted_type(self.at.point) is None:
            if self.server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(
                    f"{self.name} does not mount: {log.read_text('utf-8', 'replace')}"
                )
            time.sleep(0.002)

    def stop(self) -> None:
        """Unmount, in order where possible."""
        if self._own is not None:
            self._own.stop()
            self._own.check_log()
        elif self.server is not None:
            done = subprocess.run(["umount", self.at.point], capture_output=True, check=False)
            if done.returncode:
                mounts.detach(self.at.point)
            try:
                self.server.wait(_GOING_SECONDS)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        self.server = self._own = None

    def pin(self, cpus: set[int]) -> None:
        """Let every thread of the server run on *cpus* only."""
        if self.server is None:
            return
        for task in os.listdir(f"/proc/{self.server.pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task), cpus)

    def usage(self) -> Usage | None:
        """What its server has used; None where it has none."""
        return None if self.server is None else usage_of(self.server.pid)

    def memory_kib(self) -> int:
        """What its server holds, 0 where it has none."""
        if self.server is None:
            return 0
        lines = Path(f"/proc/{self.server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@contextlib.contextmanager
def gathered(
    contestants: Sequence[Contestant], base: Path, built: Path, shared: Path | None = None
) -> Iterator[list[Running]]:
    """The contestants with their directories below *base*, stopped and removed at the end."""
    base.mkdir(parents=True)
    running = []
    for number, contestant in enumerate(contestants):
        # Not by name: what is in a command line and in /proc/mounts had better be plain.
        at = Places(base / str(number), shared)
        at.make()
        running.append(Running(contestant, at, built))
    try:
        with contextlib.ExitStack() as stack:
            for one in running:
                stack.callback(one.stop)
            yield running
    finally:
        for one in running:
            # Below a mount that is still there would be somebody's files.
            if not mounts_below(one.at.work):
                shutil.rmtree(one.at.work)
        with contextlib.suppress(OSError):
            base.rmdir()
