"""`sysroot-fs mount`, run as a user runs it: how it starts, fails, and ends."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from sidecar import linux
from sysroot_fs.cli import daemon, machine, main, preflight
from sysroot_fs.cli.errors import CommandError, FuseUnavailable, MountFailed, SysrootError
from sysroot_fs.cli.options import Settings
from sysroot_fs.cli.preflight import mount_at
from tests.waiting import comes, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "sysroot_fs")
PATIENCE = 30.0
"""Seconds after which something that should have happened has not."""


def environment(*first: Path) -> dict[str, str]:
    """The environment in which the checkout's own package runs, after the folders `first`."""
    found = os.environ.get("PYTHONPATH")
    paths = [*map(str, first), str(REPOSITORY), *([found] if found else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(
    *arguments: str | bytes | Path,
    before: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> "Result":
    """Run the command to its end, as a user would; `before` is a command that runs it."""
    done = subprocess.run(
        [*before, *COMMAND, *arguments],
        capture_output=True,
        timeout=PATIENCE * 2,
        env=env or environment(),
        cwd=cwd,
    )
    return Result(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


@attrs.frozen
class Result:
    """How the command ended."""

    status: int
    out: str
    err: str

    def assert_sentence(self, *parts: str, status: int = 1) -> None:
        """It failed with `status` and one sentence on stderr that holds all of `parts`."""
        assert (self.status, self.out) == (status, ""), self.err
        assert self.err.startswith("sysroot-fs: ") and self.err.count("\n") == 1, self.err
        for part in parts:
            assert part in self.err


def is_mounted(path: Path) -> bool:
    return mount_at(os.fsencode(path)) is not None


def servers(mountpoint: Path) -> list[int]:
    """The processes that run `mount` for this mountpoint, but for a guardian that is being made."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"sysroot_fs" in words and os.fsencode(mountpoint) in words:
                    status = (entry / "stat").read_text().rpartition(")")[2].split()
                    found[int(entry.name)] = int(status[1])
    return [pid for pid, parent in found.items() if parent not in found]


class Place:
    """A sysroot and a mountpoint, cleaned up whatever the test did."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.sysroot = top / "guest"
        self.mountpoint = top / "mnt"
        self.sysroot.mkdir()
        self.mountpoint.mkdir()
        (self.sysroot / "hello").write_text("from the sysroot\n")

    def mount(self, *arguments: str, sysroot: Path | None = None) -> Result:
        return run("mount", sysroot or self.sysroot, self.mountpoint, *arguments)

    def mounted(self, *arguments: str, sysroot: Path | None = None) -> "Place":
        result = self.mount(*arguments, sysroot=sysroot)
        assert (result.status, result.out, result.err) == (0, "", "")
        return self

    @property
    def server(self) -> int:
        (pid,) = servers(self.mountpoint)
        return pid

    @property
    def line(self) -> list[str]:
        """The fields of the mount's line in /proc/mounts."""
        for line in Path("/proc/mounts").read_text().splitlines():
            if line.split()[1] == str(self.mountpoint):
                return line.split()
        raise AssertionError("not in /proc/mounts")

    def ended(self) -> bool:
        return comes(lambda: not is_mounted(self.mountpoint) and not servers(self.mountpoint))

    def clean_up(self) -> None:
        for _ in range(5):
            if is_mounted(self.mountpoint):
                with contextlib.suppress(OSError):
                    linux.umount(os.fsencode(self.mountpoint), lazy=True)
        for pid in servers(self.mountpoint):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self.ended()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A fresh sysroot and mountpoint; afterwards nothing is mounted and nothing runs."""
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.clean_up()


# --- it works -------------------------------------------------------------------------------


def test_mounts_and_returns(place: Place) -> None:
    """The command returns when the mount is up, and the sysroot is seen through it."""
    place.mounted("-o", "fallback=none")
    assert (place.mountpoint / "hello").read_text() == "from the sysroot\n"


def test_proc_mounts(place: Place) -> None:
    """/proc/mounts shows the sysroot as source, `fuse.sysroot`, and root's defaults."""
    source, _, fstype, options, *_ = place.mounted().line
    assert (source, fstype) == (str(place.sysroot), "fuse.sysroot")
    words = options.split(",")
    assert {"rw", "allow_other", "default_permissions"} <= set(words)
    assert not {"nosuid", "nodev", "noexec"} & set(words)


def test_mount_options_take_effect(place: Place) -> None:
    """The options of the mount itself arrive at the kernel."""
    place.mounted("-o", "ro,nosuid,nodev,noexec,noatime,fsname=x,subtype=y")
    source, _, fstype, options, *_ = place.line
    assert (source, fstype) == ("x", "fuse.y")
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(options.split(","))


@pytest.mark.parametrize("options", [(), ("-o", "auto_unmount")], ids=["direct", "fusermount3"])
def test_odd_source(place: Place, options: tuple[str, ...]) -> None:
    """Commas, blanks, backslashes and accents in the sysroot's path reach /proc/mounts whole."""
    odd = place.top / "a, b\\c é"
    odd.mkdir()
    place.mounted(*options, sysroot=odd)
    found = mount_at(os.fsencode(place.mountpoint))
    assert found is not None
    assert found.source == os.fsencode(odd)


def test_relative_paths(place: Place) -> None:
    """Relative paths mean what they mean in the shell, though the server works in `/`."""
    result = run("mount", "guest", "./mnt", "--fallback", "none", cwd=place.top)
    try:
        assert (result.status, result.err) == (0, "")
        assert (place.mountpoint / "hello").exists()
        assert place.line[0] == str(place.sysroot)
    finally:
        linux.umount(os.fsencode(place.mountpoint), lazy=True)


def test_ignored_options(place: Place) -> None:
    """A line of /etc/fstab with options for others mounts."""
    place.mounted("-o", "defaults,_netdev,nofail,x-systemd.automount,noauto,users")


def test_not_empty(place: Place) -> None:
    """A mountpoint that is not empty is mounted on, and the user is told."""
    (place.mountpoint / "hidden").touch()
    result = place.mount("--fallback", "none")
    assert result.status == 0
    assert "note:" in result.err and "not empty" in result.err and result.err.count("\n") == 1
    assert is_mounted(place.mountpoint)


@pytest.mark.parametrize("door", ["kernel", "pyfuse3"])
def test_max_read(place: Place, door: str) -> None:
    """max_read limits reads, or is said to have no effect."""
    result = place.mount("-o", f"door={door},max_read=65536,fallback=none")
    assert result.status == 0
    assert ("note: max_read" in result.err) == (door == "pyfuse3")
    assert (place.mountpoint / "hello").exists()
    (options,) = [
        line.split()[-1]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(place.mountpoint)
    ]
    assert ("max_read=65536" in options.split(",")) == (door == "kernel")


def test_server_lets_go(place: Place) -> None:
    """The server holds no terminal, no directory and no descriptor of the shell's."""
    place.mounted()
    proc = Path(f"/proc/{place.server}")
    assert {os.readlink(proc / "fd" / str(fd)) for fd in (0, 1, 2)} == {"/dev/null"}
    assert os.readlink(proc / "cwd") == "/"
    assert os.getsid(place.server) == place.server


def test_log_file(place: Place) -> None:
    """`log=` gets the server's log, with the end of the mount in it."""
    log = place.top / "log, of mine"
    place.mounted("--log", str(log))
    os.kill(place.server, signal.SIGTERM)
    assert place.ended()
    assert "is unmounted" in log.read_text()


# --- it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("fusermount3", "-u"), ("umount",)], ids=lambda w: w[0])
def test_unmounting_ends_it(place: Place, words: tuple[str, ...]) -> None:
    """Unmounting by either command ends the server."""
    place.mounted()
    subprocess.run([*words, place.mountpoint], check=True, timeout=PATIENCE)
    assert place.ended()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(place: Place, number: signal.Signals) -> None:
    """A signal to the server in the background unmounts."""
    place.mounted()
    os.kill(place.server, number)
    assert place.ended()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("flag", ["-f", "-d"])
def test_foreground(place: Place, flag: str, number: signal.Signals) -> None:
    """In the foreground it serves until a signal, unmounts, and ends well."""
    with subprocess.Popen(
        [*COMMAND, "mount", place.sysroot, place.mountpoint, flag],
        env=environment(),
        stderr=subprocess.PIPE,
    ) as server:
        try:
            wait_until(lambda: is_mounted(place.mountpoint))
            server.send_signal(number)
            _, err = server.communicate(timeout=PATIENCE)
        finally:
            server.kill()
    assert server.returncode == 0
    assert not is_mounted(place.mountpoint)
    assert b"Traceback" not in err


def test_auto_unmount(place: Place) -> None:
    """With auto_unmount the mount does not outlive a server that was killed."""
    place.mounted("-o", "auto_unmount")
    os.kill(place.server, signal.SIGKILL)
    assert place.ended()


def test_auto_unmount_comes_after_the_end(place: Place) -> None:
    """fusermount3 waits on a socket that a killed server keeps longer than /dev/fuse.

    The kernel closes the highest number first. A mount that is alive still would be left alone.
    """
    place.mounted("-o", "auto_unmount")
    open_files = Path(f"/proc/{place.server}/fd")
    held = {int(name): os.readlink(open_files / name) for name in os.listdir(open_files)}
    device = next(fd for fd, path in held.items() if path == "/dev/fuse")
    assert min(fd for fd, path in held.items() if path.startswith("socket:")) < device


# --- it fails, and says why -----------------------------------------------------------------


def test_sysroot_missing(place: Place) -> None:
    """A sysroot that is not there."""
    run("mount", place.top / "none", place.mountpoint).assert_sentence("none", "does not exist")


def test_sysroot_is_a_file(place: Place) -> None:
    """A sysroot that is a file."""
    run("mount", place.sysroot / "hello", place.mountpoint).assert_sentence("not a directory")


def test_sysroot_through_a_file(place: Place) -> None:
    """A sysroot whose path leads through a file."""
    run("mount", place.sysroot / "hello/x", place.mountpoint).assert_sentence("through a file")


def test_sysroot_unreadable(place: Place) -> None:
    """A sysroot that this user may not read."""
    place.top.chmod(0o700)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            preflight.check_sysroot(os.fsencode(place.sysroot))
        except SysrootError as error:
            status = 0 if "cannot be read: permission denied" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_mountpoint_missing(place: Place) -> None:
    """A mountpoint that is not there."""
    run("mount", place.sysroot, place.top / "none").assert_sentence("none", "create it first")


def test_mountpoint_is_a_file(place: Place) -> None:
    """A mountpoint that is a file."""
    run("mount", place.sysroot, place.sysroot / "hello").assert_sentence("not a directory")


def test_mountpoint_is_the_sysroot(place: Place) -> None:
    """The sysroot over itself, by another name too."""
    run("mount", place.sysroot, place.sysroot).assert_sentence("is the sysroot itself")
    (place.top / "link").symlink_to(place.sysroot)
    run("mount", place.top / "link", place.sysroot).assert_sentence("is the sysroot itself")


def test_mountpoint_in_the_sysroot(place: Place) -> None:
    """A mountpoint inside the sysroot, behind a link too."""
    (place.sysroot / "mnt").mkdir()
    run("mount", place.sysroot, place.sysroot / "mnt").assert_sentence("inside the sysroot")
    (place.top / "link").symlink_to(place.sysroot / "mnt")
    run("mount", place.sysroot, place.top / "link").assert_sentence("inside the sysroot")


def test_sysroot_in_the_mountpoint(place: Place) -> None:
    """A sysroot inside the mountpoint, which would hide it."""
    run("mount", place.sysroot, place.top).assert_sentence("inside the mountpoint")


def test_mountpoint_busy(place: Place) -> None:
    """A mountpoint that shows a sysroot already; the mount that is there goes on."""
    place.mounted("--fallback", "none")
    place.mount().assert_sentence("busy", "fusermount3 -u", str(place.sysroot))
    assert (place.mountpoint / "hello").exists()


def test_mountpoint_dead(place: Place) -> None:
    """A mountpoint whose server was killed."""
    place.mounted()
    pid = place.server
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not servers(place.mountpoint))
    place.mount().assert_sentence("dead mount", f"fusermount3 -u {place.mountpoint}")


@pytest.mark.parametrize("door", ["kernel", "pyfuse3"])
def test_too_few_descriptors(place: Place, door: str) -> None:
    """Whatever cannot be opened for lack of descriptors: one sentence and no mount, or a mount."""
    (host := place.top / "host").mkdir()
    statuses = set()
    for limit in range(12, 26):
        before = ("prlimit", f"--nofile={limit}:{limit}")
        result = run(
            "mount", place.sysroot, place.mountpoint, "-o", f"host={host},door={door}",
            before=before,
        )  # fmt: skip
        statuses.add(result.status)
        if result.status == 0:
            linux.umount(os.fsencode(place.mountpoint), lazy=True)
        else:
            result.assert_sentence()
            assert not is_mounted(place.mountpoint), limit
        assert place.ended(), limit
    assert statuses == {0, 1}


def test_host_missing(place: Place) -> None:
    """A host tree that is not there."""
    place.mount("--host", "/nonexistent").assert_sentence("host /nonexistent does not exist")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("mount", "", "mnt"), "sysroot"),
        (("mount", ".", ""), "mountpoint"),
        (("check", ""), "sysroot"),
    ],
)
def test_empty_paths(words: tuple[str, ...], what: str) -> None:
    """An empty path, as an unset variable of a script gives it, is called one."""
    run(*words).assert_sentence(f"{what} is an empty path")


def test_log_unwritable(place: Place) -> None:
    """A log that cannot be written is found out before anything is mounted."""
    place.mount("--log", "/nonexistent/log").assert_sentence("log", "no such file")
    assert not is_mounted(place.mountpoint)


def test_device_missing(place: Place) -> None:
    """A machine, or a container, without /dev/fuse."""
    script = 'mount -t tmpfs none /dev && exec "$@"'
    before = ("unshare", "-m", "sh", "-c", script, "sh")
    run("mount", place.sysroot, place.mountpoint, before=before).assert_sentence(
        "/dev/fuse is missing", "modprobe fuse"
    )


@pytest.mark.parametrize("verb", ["mount", "run"])
def test_device_is_another(place: Place, verb: str) -> None:
    """A sandbox that hides /dev/fuse behind /dev/null."""
    script = 'mount --bind /dev/null /dev/fuse && exec "$@"'
    before = ("unshare", "-m", "sh", "-c", script, "sh")
    run(verb, place.sysroot, place.mountpoint, before=before).assert_sentence(
        "/dev/fuse is not the kernel's FUSE device", status=125 if verb == "run" else 1
    )


@pytest.mark.parametrize(
    "before",
    [
        ("unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh"),
        ("unshare", "--pid", "--fork"),
    ],
)
def test_no_proc(place: Place, before: tuple[str, ...]) -> None:
    """Where /proc is not mounted, or shows other processes, mount says so."""
    run("mount", place.sysroot, place.mountpoint, before=before).assert_sentence("/proc")
    assert not is_mounted(place.mountpoint)


def test_no_rights(place: Place) -> None:
    """Root without the right to mount: libfuse's own words become part of the one sentence."""
    before = ("setpriv", "--bounding-set=-sys_admin")
    run("mount", place.sysroot, place.mountpoint, before=before).assert_sentence(
        str(place.mountpoint), "cannot be mounted on", "not permitted"
    )


def test_no_rights_in_the_foreground(place: Place) -> None:
    """The same sentence, and no other words, when it would have stayed in the foreground."""
    before = ("setpriv", "--bounding-set=-sys_admin")
    run("mount", place.sysroot, place.mountpoint, "-f", before=before).assert_sentence(
        "cannot be mounted on"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(suid=True), "only root can mount with suid"),
        (Settings(dev=True), "only root can mount with dev"),
        (Settings(allow_other=True), "allow_other is for root only"),
    ],
)
def test_user_rights(monkeypatch: pytest.MonkeyPatch, settings: Settings, words: str) -> None:
    """What only root can have is refused to others before fusermount3 would ignore it."""
    monkeypatch.setattr(machine, "mount_problem", lambda auto_unmount: None)
    monkeypatch.setattr(machine, "user_allow_other", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FuseUnavailable, match=words):
        preflight.check_machine(settings)


def test_fusermount_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fusermount3 only root can mount, and nobody with auto_unmount."""
    monkeypatch.setattr(machine, "device_problem", lambda: None)
    monkeypatch.setattr(machine, "fusermount", lambda: None)
    monkeypatch.setattr(machine, "may_mount", lambda: False)
    assert "fusermount3 is missing" in str(machine.mount_problem())
    monkeypatch.setattr(machine, "may_mount", lambda: True)
    assert machine.mount_problem() is None
    assert "auto_unmount needs" in str(machine.mount_problem(auto_unmount=True))


@pytest.mark.parametrize(
    "body",
    [
        "print('wrong libfuse'); raise SystemExit(1)",
        "raise ImportError('libfuse3.so.3: cannot open shared object file')",
    ],
    ids=["exits", "raises"],
)
def test_broken_binding(place: Place, body: str) -> None:
    """A pyfuse3 that cannot be imported is one sentence about what to install."""
    (place.top / "pyfuse3.py").write_text(body)
    words = ("mount", "-o", "door=pyfuse3", place.sysroot, place.mountpoint)
    run(*words, env=environment(place.top)).assert_sentence("pyfuse3 cannot be loaded", "install")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "VERB"),
        (("mnt",), "invalid choice"),
        (("mount",), "SYSROOT"),
        (("mount", "a"), "MOUNTPOINT"),
        (("mount", "a", "b", "c"), "arguments: c (`sysroot-fs mount --help` says more)"),
        (("mount", "a", "b", "--fall", "all"), "--fall all (`sysroot-fs mount --help`"),
        (("mount", "a", "b", "-o"), "-o"),
        (("mount", "a", "b", "-o", "fallbak=all"), "did you mean fallback?"),
        (("mount", "a", "b", "-o", "host_writes=cow"), "not built yet"),
        (("mount", "a", "b", "--host-writes", "never"), "host_writes"),
        (("mount", "a", "b", "-o", "entry_timeout=-1"), "entry_timeout"),
    ],
)
def test_usage(arguments: tuple[str, ...], part: str) -> None:
    """A wrong command line is one sentence, and exit status 2."""
    run(*arguments).assert_sentence(part, status=2)


# --- the rest of the command ----------------------------------------------------------------


def test_version() -> None:
    """`--version` names all four parts on one line."""
    result = run("--version")
    assert (result.status, result.err) == (0, "")
    assert result.out.count("\n") == 1
    for part in ("sysroot-fs 0.", "pyfuse3 3.", "libfuse 3.", f"kernel {machine.kernel()}"):
        assert part in result.out


@pytest.mark.parametrize("verb", [(), ("mount",), ("resolve",), ("doctor",)], ids=str)
def test_help(verb: tuple[str, ...]) -> None:
    """Every help text is complete, goes to stdout, and fits a wide terminal."""
    result = run(*verb, "--help")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("usage: sysroot-fs")
    assert max(map(len, result.out.splitlines())) <= 100


@pytest.mark.parametrize("flag", ["--", "-f"])
def test_started_without_input_and_output(place: Place, flag: str) -> None:
    """With 0, 1 and 2 closed it mounts, and returns or stays, as with all of them."""
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    with subprocess.Popen(
        [*closed, *COMMAND, "mount", flag, place.sysroot, place.mountpoint], env=environment()
    ) as command:
        try:
            wait_until(lambda: is_mounted(place.mountpoint))
            if flag == "-f":
                command.send_signal(signal.SIGTERM)
            assert command.wait(PATIENCE) == 0
        finally:
            command.kill()


@pytest.mark.parametrize("arguments", [("--version",), ("mount", "--help")], ids=str)
def test_nobody_reads_the_output(arguments: tuple[str, ...]) -> None:
    """Output into a closed pipe ends the command without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=PATIENCE,
    )
    os.close(writer)
    assert (done.returncode in (0, 1), done.stderr) == (True, b"")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_output_cannot_be_written(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Output to a full volume is a sentence, and no bug of ours."""
    words = [*COMMAND, "doctor", *options, str(tmp_path)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, env=environment())
    assert done.returncode == 1
    said = b"sysroot-fs: no space left on device: where the output goes, or another volume, is full"
    assert done.stderr == said + b"\n"


def test_a_bug_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What nobody thought of is a sentence too, and says how to see more."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(preflight, "check_all", fail)
    assert main(["mount", str(tmp_path), str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("sysroot-fs: ZeroDivisionError: by zero")


# --- going to the background ----------------------------------------------------------------


def detached(work: daemon.Work) -> str:
    """The sentence with which the work failed."""
    with pytest.raises(MountFailed) as caught:
        daemon.run_detached(work)
    return str(caught.value)


def raises(error: BaseException) -> daemon.Work:
    """Work that fails with `error`."""

    def work(_: daemon.Ready) -> None:
        raise error

    return work


def test_ready_releases_the_caller(tmp_path: Path) -> None:
    """The caller goes on when the work is ready, while the work goes on too."""
    done = tmp_path / "done"

    def work(ready: daemon.Ready) -> None:
        ready()
        ready()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        done.touch()

    daemon.run_detached(work)
    assert not done.exists()
    (tmp_path / "go").touch()
    wait_until(done.exists)
    os.wait()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (CommandError("no such luck"), "no such luck"),
        (PermissionError(13, "x", b"/a/b"), "permission denied: /a/b"),
        (RuntimeError("several\nlines"), "RuntimeError: several lines"),
        (BaseExceptionGroup("g", [SysrootError("inner")]), "inner"),
        (SystemExit(3), "SystemExit: 3"),
        (SystemExit(), "ended before the mount was up"),
    ],
)
def test_failure_reaches_the_caller(error: BaseException, words: str) -> None:
    """Whatever is raised before it is ready becomes the caller's sentence."""
    assert words in detached(raises(error))


def test_long_failure() -> None:
    """A sentence longer than a pipe takes at once is cut, not lost."""
    assert detached(raises(CommandError("x" * 100_000))).startswith("xxx")


def test_killed_before_ready() -> None:
    """A child that is killed before it is ready is an error that says so."""
    assert "killed by SIGKILL" in detached(lambda _: os.kill(os.getpid(), signal.SIGKILL))


def test_exit_before_ready() -> None:
    """A child that exits without a word is an error with its exit status."""
    assert "exit status 7" in detached(lambda _: os._exit(7))


def test_returned_before_ready() -> None:
    """Work that returns without having been ready is an error."""
    assert "before the mount was up" in detached(lambda _: None)


def mounted_by(script: str, place: Place) -> Result:
    """What `mount` says where *script* starts it."""
    done = subprocess.run(
        [sys.executable, "-c", script, "mount", place.sysroot, place.mountpoint],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
    )
    return Result(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))


@pytest.mark.parametrize("fate", ["return", "raise RuntimeError('gone')"])
def test_gone_after_ready(place: Place, fate: str) -> None:
    """A server that ends as soon as it said that it is ready is a failure of the command."""
    script = textwrap.dedent(
        f"""
        import sys
        from sysroot_fs.cli import mount, main
        def serve(*arguments):
            ready = arguments[-1]
            ready()
            {fate}
        mount._serve = serve
        sys.exit(main(sys.argv[1:]))
        """
    )
    mounted_by(script, place).assert_sentence("was mounted, but its server ended")


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_interrupted_while_waiting(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """A signal to the command while the mount comes up ends both processes, quietly."""
    script = textwrap.dedent(
        """
        import os, sys, time
        from sysroot_fs.cli import daemon, mount, main
        def serve(*_):
            open(sys.argv[1] + "/pid", "w").write(str(os.getpid()))
            time.sleep(600)
        mount._serve = serve
        os.makedirs(sys.argv[1] + "/a"), os.makedirs(sys.argv[1] + "/b")
        sys.exit(main(["mount", sys.argv[1] + "/a", sys.argv[1] + "/b"]))
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], env=environment(), stderr=subprocess.PIPE
    ) as shell:
        pid_file = tmp_path / "pid"
        wait_until(lambda: pid_file.exists() and pid_file.read_text())
        child = int(pid_file.read_text())
        shell.send_signal(number)
        _, err = shell.communicate(timeout=PATIENCE)
    assert (shell.returncode, err) == (status, b"")
    wait_until(lambda: not _runs(child))


def test_interrupted_when_it_is_up(place: Place) -> None:
    """A signal that comes when the mount is up is too late: the command has succeeded."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from sysroot_fs.cli import main, mount
        check = mount._check_answers
        def signalled(mountpoint):
            os.kill(os.getpid(), signal.SIGTERM)
            check(mountpoint)
        mount._check_answers = signalled
        sys.exit(main(sys.argv[1:]))
        """
    )
    assert mounted_by(script, place) == Result(0, "", "")
    assert is_mounted(place.mountpoint)


@pytest.mark.parametrize(
    "words", [["doctor"], ["run", "--fallback", "none"], ["check", "--for", "exfat"]]
)
def test_interrupted_while_a_volume_hangs(place: Place, words: list[str]) -> None:
    """^C ends a command whose sysroot's server does not answer, with a sentence that says so."""
    place.mounted("--fallback", "none")
    os.kill(place.server, signal.SIGSTOP)
    try:
        with subprocess.Popen(
            [*COMMAND, *words, place.mountpoint], env=environment(), stderr=subprocess.PIPE
        ) as hanging:
            wait_until(lambda: _waits_for_fuse(hanging.pid))
            hanging.send_signal(signal.SIGINT)
            _, err = hanging.communicate(timeout=PATIENCE)
    finally:
        os.kill(place.server, signal.SIGCONT)
    said = f"sysroot-fs: interrupted, because {place.mountpoint} does not answer\n"
    assert (hanging.returncode, err.decode()) == (130, said)


def _waits_for_fuse(pid: int) -> bool:
    return b"request_wait_answer" in Path(f"/proc/{pid}/stack").read_bytes()


def _runs(pid: int) -> bool:
    """Whether the process runs; one that ended and nobody waited for does not."""
    try:
        return b"State:\tZ" not in Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False


def test_errors_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    """What C code says on descriptor 2 is kept while it lasts, and not afterwards."""
    with daemon.ErrorsHeldBack() as held:
        os.write(2, b"fuse: one\n\n  two \n")
        assert held.said() == "fuse: one; two"
        held.release()
        os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
