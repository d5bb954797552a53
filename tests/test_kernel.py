"""The system calls for namespaces and mounts, the mounts of a guest's root, the last steps of exec.

Every test works in a child with a mount namespace of its own.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar import linux
from sysroot_fs.guest import command, kernel, mounts
from sysroot_fs.guest.plan import Bind, Command, GuestError, Kernel, Refusal, Root, Tmpfs
from tests.children import code_of, in_child


def apart(work: Callable[[], Any], umask: int = 0o022) -> Any:
    """What *work* returns in a process with mounts of its own."""

    def inside() -> object:
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS)
        kernel.keep_mounts_to_ourselves()
        return work()

    return in_child(inside, umask=umask)


def path_fd(path: Path | str) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def table() -> list[list[str]]:
    return [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]


# --- kernel -----------------------------------------------------------------------------------


def test_unshare_and_setns_change_the_namespace() -> None:
    """A new namespace differs from the old one, and setns goes back to it."""

    def work() -> list[str]:
        old = os.open("/proc/self/ns/uts", os.O_RDONLY)
        seen = [os.readlink("/proc/self/ns/uts")]
        kernel.unshare(kernel.CLONE_NEWUTS)
        seen.append(os.readlink("/proc/self/ns/uts"))
        kernel.setns(old, kernel.CLONE_NEWUTS)
        return [*seen, os.readlink("/proc/self/ns/uts")]

    old, new, again = in_child(work)
    assert old == again != new


def test_failures_are_oserrors() -> None:
    """What the kernel refuses is an OSError with its number, for every kind of call."""

    def work() -> list[int]:
        null = os.open(os.devnull, os.O_RDONLY)
        return [
            code_of(kernel.unshare, 1),
            code_of(kernel.setns, null, kernel.CLONE_NEWNS),
            code_of(linux.new_mount, b"no-such-filesystem"),
            code_of(linux.new_mount, b"tmpfs", {b"no-such-option": b"1"}),
            code_of(kernel.clone_mounts, b"/no/such/place"),
            code_of(kernel.attach, null, null),
            code_of(kernel.make_read_only, null),
        ]

    assert apart(work) == [
        errno.EINVAL, errno.EINVAL, errno.ENODEV, errno.EINVAL, errno.ENOENT, errno.EINVAL,
        errno.EINVAL,
    ]  # fmt: skip


def test_a_failed_mount_leaks_no_descriptor() -> None:
    """The context of a mount that cannot be made is closed."""

    def work() -> bool:
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            code_of(linux.new_mount, b"tmpfs", {b"size": b"nonsense"})
        return before == os.listdir("/proc/self/fd")

    assert apart(work)


def test_a_new_mount_is_seen_where_it_is_attached_only(workplace: Path) -> None:
    """A mount is nowhere until it is attached, has its options, and is closed on exec."""

    def work() -> tuple[int, list[list[str]], bool]:
        attributes = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC
        options = {b"mode": b"711", b"source": b"what I say"}
        mount = linux.new_mount(b"tmpfs", options, attributes)
        nowhere = sum(str(workplace) in line for line in table())
        kernel.attach(mount, path_fd(workplace))
        here = [line for line in table() if line[4] == str(workplace)]
        return nowhere, here, os.get_inheritable(mount)

    nowhere, here, inheritable = apart(work)
    assert nowhere == 0 and not inheritable
    (line,) = here
    assert line[5].split(",")[:4] == ["rw", "nosuid", "nodev", "noexec"]
    assert line[line.index("-") + 2] == "what\\040I\\040say" and "mode=711" in line[-1]
    assert str(workplace) not in Path("/proc/self/mountinfo").read_text()


def test_a_clone_has_the_mounts_below(workplace: Path) -> None:
    """A clone shows what is mounted below its path, and read-only is for all of it."""
    for name in ("from/below", "to"):
        (workplace / name).mkdir(parents=True)

    def work() -> tuple[list[str], list[int], int]:
        kernel.attach(linux.new_mount(b"tmpfs"), path_fd(workplace / "from/below"))
        (workplace / "from/below/file").touch()
        clone = kernel.clone_mounts(os.fsencode(workplace / "from"))
        kernel.make_read_only(clone)
        kernel.attach(clone, path_fd(workplace / "to"))
        errors = [code_of((workplace / place).touch) for place in ("to/new", "to/below/new")]
        return os.listdir(workplace / "to/below"), errors, code_of((workplace / "from/new").touch)

    assert apart(work) == (["file"], [errno.EROFS] * 2, 0)


def test_the_old_root_is_gone_after_a_change(workplace: Path) -> None:
    """After `change_root` there is one mount, the working directory is /, and .. stays there."""

    def work() -> tuple[list[str], str, list[str]]:
        kernel.attach(proc := linux.new_mount(b"proc"), path_fd(workplace))
        top = linux.new_mount(b"tmpfs")
        kernel.attach(top, path_fd("/"))
        os.mkdir("inner", dir_fd=top)
        os.chdir(workplace)
        kernel.change_root(top)
        with open(os.open("self/mountinfo", os.O_RDONLY, dir_fd=proc)) as lines:
            places = [line.split()[4] for line in lines]
        cwd = os.getcwd()
        os.chdir("../../..")
        return places, cwd, os.listdir(".")

    assert apart(work) == (["/"], "/", ["inner"])


def test_orphans_come_to_who_adopts_them() -> None:
    """A subreaper is the parent of a grandchild whose own parent has ended."""

    def work() -> bool:
        kernel.adopt_orphans()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild:
                os.write(writer, b"%d" % grandchild)
            os._exit(0)
        os.waitpid(child, 0)
        grandchild = int(os.read(reader, 20))
        return os.waitpid(-1, 0)[0] == grandchild

    assert in_child(work)


def test_a_child_dies_with_its_parent() -> None:
    """Who has asked for it gets SIGKILL when the process that forked it ends."""

    def work() -> int:
        kernel.adopt_orphans()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                kernel.die_with_parent()
                os.write(writer, b"%d" % os.getpid())
                signal.pause()
            os.read(reader, 20)
            os._exit(0)
        os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1])

    assert in_child(work) == -signal.SIGKILL


# --- mounts -----------------------------------------------------------------------------------


@pytest.fixture
def lay(workplace: Path) -> Iterator[Callable[..., Any]]:
    """Lay *what* over a tmpfs with some directories, and run *look* below it; returns its value."""
    top = workplace / "top"
    top.mkdir()

    def run(
        look: Callable[[Path], object], *what: Bind | Tmpfs, umask: int = 0o022, **root: Any
    ) -> Any:
        def work() -> object:
            kernel.attach(linux.new_mount(b"tmpfs"), path_fd(top))
            for name in ("proc", "dev", "sys", "mnt", "mnt2"):
                (top / name).mkdir()
            (top / "file").touch()
            (top / "out").symlink_to("/mnt")
            (top / "up").symlink_to("../../../../mnt")
            (top / "loop").symlink_to("loop")
            kinds = dict.fromkeys(("proc", "dev", "sys"), Kernel.NONE) | root
            mounts.lay_over(path_fd(top), Root({}, 0, mounts=what, **kinds))
            return look(top)

        return apart(work, umask)

    yield run


@pytest.mark.parametrize("target", [b"/mnt", b"/out", b"/up", b"/mnt/../out", b"//mnt/"])
def test_a_target_is_resolved_in_the_guest(
    lay: Callable[..., Any], workplace: Path, target: bytes
) -> None:
    """Links on the way, absolute ones and such as climb, stay below the guest's root."""
    (workplace / "source").mkdir()
    (workplace / "source/seen").touch()
    bind = Bind(os.fsencode(workplace / "source"), target)
    assert lay(lambda top: os.listdir(top / "mnt"), bind) == ["seen"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (Bind(b"/etc", b"/file"), "/etc cannot be bound at /file: one is a directory"),
        (Bind(b"/dev/null", b"/mnt"), "/dev/null cannot be bound at /mnt: one is a directory"),
        (Bind(b"/etc", b"/file/x"), "leads through a file"),
        (Bind(b"/etc", b"/absent"), "/etc cannot be bound at /absent: no such file"),
        (Bind(b"/absent\n", b"/mnt"), r"/absent\n cannot be bound: no such file"),
        (Bind(b"/etc", b"/loop"), "/etc cannot be bound at /loop: too many levels"),
        (Tmpfs(b"/file"), "no tmpfs can be mounted at /file: not a directory"),
        (Tmpfs(b"/absent"), "no tmpfs can be mounted at /absent: no such file"),
    ],
)
def test_a_mount_that_cannot_be_is_one_sentence(
    lay: Callable[..., Any], what: Bind | Tmpfs, said: str
) -> None:
    """The sentence names both sides and the reason."""
    with pytest.raises(GuestError) as caught:
        lay(lambda top: None, what)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_later_mounts_cover_earlier_ones(lay: Callable[..., Any]) -> None:
    """Mounts are made in their order, and each later one is resolved on top of the others."""
    tmpfs = Tmpfs(b"/mnt")
    assert lay(lambda top: os.listdir(top / "mnt"), Bind(b"/etc", b"/mnt"), tmpfs) == []
    assert "passwd" in lay(lambda top: os.listdir(top / "mnt"), tmpfs, Bind(b"/etc", b"/mnt"))


def test_a_fresh_dev_does_not_depend_on_the_umask(lay: Callable[..., Any]) -> None:
    """With the umask 077 the devices are for everybody still."""

    def look(top: Path) -> list[int]:
        names = (".", "null", "tty", "pts", "pts/ptmx", "shm")
        return [stat.S_IMODE((top / "dev" / name).stat().st_mode) for name in names]

    modes = lay(look, umask=0o077, dev=Kernel.FRESH)
    assert modes == [0o755, 0o666, 0o666, 0o755, 0o666, 0o1777]


# --- command ----------------------------------------------------------------------------------


def started(what: Command, before: Callable[[], object] = lambda: None) -> str:
    """What the command that *what* starts writes; raises what `start` raises."""

    def work() -> None:
        os.dup2(writer, 1)
        before()
        command.start(what, ())

    reader, writer = os.pipe()
    with open(reader) as pipe:
        try:
            # A child that becomes another program sends no result.
            with pytest.raises(AssertionError, match="ended without an answer"):
                in_child(work)
        finally:
            os.close(writer)
        return pipe.read()


ENV = {b"PATH": b"/bin:/usr/bin"}


def test_the_program_gets_arguments_environment_and_directory() -> None:
    """argv, the environment with PWD, and the working directory are the command's."""
    words = (b"sh", b"-c", b'echo "$0 $1 $A"; pwd -P; echo "$PWD"', b"zero", b"one")
    said = started(Command(words, {**ENV, b"A": b"a"}, b"/usr", insist=True))
    assert said == "zero one a\n/usr\n/usr\n"


def test_pwd_is_not_invented() -> None:
    """Where the caller had no PWD, and asked for no directory, the program has none."""
    assert started(Command((b"env",), ENV, b"/absent")) == "PATH=/bin:/usr/bin\n"


def test_signals_that_python_ignores_are_as_before() -> None:
    """SIGPIPE and SIGXFSZ have their default action."""
    said = started(Command((b"grep", b"SigIgn", b"/proc/self/status"), ENV))
    ignored = int(said.split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1 and not ignored >> (signal.SIGXFSZ - 1) & 1


def test_text_without_an_interpreter_is_run_by_the_shell(workplace: Path) -> None:
    """A script without #! is given to /bin/sh with its arguments, as shells do."""
    script = workplace / "script"
    script.write_text('echo "$0 $1"\n')
    script.chmod(0o755)
    said = started(Command((os.fsencode(script), b"word"), ENV))
    assert said == f"{script} word\n"


def test_a_directory_that_is_asked_for_must_be_there() -> None:
    """With `insist` a directory that is absent is a GuestError that names it."""
    with pytest.raises(GuestError, match="the guest has no directory /absent: no such file"):
        started(Command((b"true",), ENV, b"/absent", insist=True))


def test_a_program_that_is_absent_is_refused() -> None:
    """What `program` finds wrong comes out as it is, with its exit status."""
    with pytest.raises(Refusal) as caught:
        started(Command((b"no-such-program",), ENV))
    assert caught.value.status == 127


def test_user_and_groups_are_taken_over() -> None:
    """A user without an account gets its own number as its group, and no other groups."""
    shell = (b"sh", b"-c", b"id -u; id -G; umask")
    said = started(Command(shell, ENV, user=54321), before=lambda: os.umask(0o027))
    assert said.split() == ["54321", "54321", "0027"]
    said = started(Command(shell, ENV, user=54321, group=7))
    assert said.split()[:2] == ["54321", "7"]
