"""From the command line of `run` to a plan, without starting anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sysroot_fs.cli.command import build_parser
from sysroot_fs.cli.errors import CommandError, UsageError
from sysroot_fs.cli.options import collect
from sysroot_fs.cli.plans import make_plan, mountpoints
from sysroot_fs.guest import kernel
from sysroot_fs.guest.plan import Bind, Kernel, Plan, Tmpfs

DEFAULTS = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


def plan(*words: str, privileged: bool = True) -> Plan:
    """The plan for `run WORDS..`; the sysroot is called guest."""
    arguments = build_parser().parse_args(["run", *words])
    settings = collect(arguments.settings or (), privileged)
    return make_plan(arguments, settings, b"/the/guest", privileged)


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["guest"], (b"/bin/sh",)),
        (["guest", "--"], (b"/bin/sh",)),
        (["guest", "ls"], (b"ls",)),
        (["guest", "--", "ls", "-l"], (b"ls", b"-l")),
        (["guest", "ls", "--", "-l"], (b"ls", b"--", b"-l")),
        (["guest", "--", "--", "ls"], (b"--", b"ls")),
        (["guest", "ls", "--pid", "-o", "ro"], (b"ls", b"--pid", b"-o", b"ro")),
        (["guest", "--pid"], (b"--pid",)),
        (["--pid", "--", "guest", "ls"], (b"ls",)),
        (["guest", ""], (b"",)),
        (["guest", "--", "", "\udcff"], (b"", b"\xff")),
        (["guest", "--help"], (b"--help",)),
    ],
)
def test_what_follows_the_sysroot_is_the_command(
    words: list[str], command: tuple[bytes, ...]
) -> None:
    """One -- after SYSROOT is passed over; everything else is the command's, options included."""
    assert plan(*words).command.arguments == command


def test_the_sysroot_is_the_first_word() -> None:
    """SYSROOT is what stands first, after a -- too, and must be there."""
    assert build_parser().parse_args(["run", "--pid", "--", "-g", "ls"]).sysroot == "-g"
    for words in ([], ["--"], ["--pid"]):
        with pytest.raises(UsageError, match="SYSROOT"):
            plan(*words)


def test_the_default_is_the_hosts() -> None:
    """Without options: the host's /proc, /dev and /sys, no namespaces but for the mounts."""
    made = plan("guest")
    root = made.root
    assert (root.proc, root.dev, root.sys) == (Kernel.HOST,) * 3
    assert (root.mounts, root.hostname, root.own_processes, root.user_namespace) == (
        (), None, False, False,
    )  # fmt: skip
    assert (made.command.user, made.command.group, made.command.insist) == (None, None, False)


# --- users ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ids"),
    [("0", (0, None)), ("1000", (1000, None)), ("1:2", (1, 2)), ("4294967294:0", (4294967294, 0))],
)
def test_users_are_numbers(text: str, ids: tuple[int, int | None]) -> None:
    """--user UID or UID:GID; without the group it is the guest's to say."""
    command = plan("--user", text, "guest").command
    assert (command.user, command.group) == ids


@pytest.mark.parametrize("text", ["", "root", "1:", ":1", "-1", "1:2:3", "1_0", "٣", "4294967295"])
def test_other_users_are_wrong(text: str) -> None:
    """Names, signs, other digits and the number that means none are usage errors."""
    with pytest.raises(UsageError, match="--user takes numbers"):
        plan(f"--user={text}", "guest")


def test_without_root_there_is_one_user() -> None:
    """In a user namespace --user can only be who the caller is inside already."""
    assert plan("--user", "0", "guest", privileged=False).command.user is None
    with pytest.raises(UsageError, match="needs root"):
        plan("--user", "5", "guest", privileged=False)


def test_a_user_namespace_is_for_those_who_are_not_root() -> None:
    """Without root there is one, with the caller as root or itself; with root it is an error."""
    mapped, itself = (plan(o, "guest", privileged=False) for o in ("--map-root", "--map-self"))
    assert mapped.root.user_namespace and mapped.root.map_root
    assert itself.root.user_namespace and not itself.root.map_root
    assert itself.root.options[b"user_id"] == b"%d" % os.geteuid()
    for option in ("--map-root", "--map-self"):
        with pytest.raises(UsageError, match="not root"):
            plan(option, "guest")
    with pytest.raises(UsageError, match="not allowed with"):
        plan("--map-root", "--map-self", "guest", privileged=False)


# --- environment ------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[bytes, bytes]]:
    """The environment of the command where the caller has A, B and TERM."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in (("A", "1"), ("B", "\udcff"), ("TERM", "vt52")):
        monkeypatch.setenv(name, value)

    def environment_for(*words: str) -> dict[bytes, bytes]:
        said = dict(plan(*words, "guest").command.environment)
        said.pop(b"PYTEST_CURRENT_TEST", None)  # set anew for every phase of a test
        return said

    return environment_for


def test_the_environment_is_kept(environment: Callable[..., dict[bytes, bytes]]) -> None:
    """Without options it is the caller's."""
    assert environment() == {b"A": b"1", b"B": b"\xff", b"TERM": b"vt52"}


def test_the_environment_is_changed(environment: Callable[..., dict[bytes, bytes]]) -> None:
    """--unset comes before --env wherever it stands, and a value may hold anything."""
    said = environment("--env", "A=x=y", "--env=C=", "--unset=A", "--unset=TERM", "--unset", "N")
    assert said == {b"A": b"x=y", b"B": b"\xff", b"C": b""}


def test_a_clean_environment_keeps_term(environment: Callable[..., dict[bytes, bytes]]) -> None:
    """--clean-env leaves TERM, and HOME is the guest's to say."""
    assert environment("--clean-env", "--env", "D=4") == {b"TERM": b"vt52", b"D": b"4"}
    assert plan("--clean-env", "guest").command.home and not plan("guest").command.home


def test_a_locale_of_pythons_own_is_not_handed_on(
    environment: Callable[..., dict[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LC_CTYPE that the caller has not set is Python's, for itself; one that is asked for stays."""
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    given = Path("/proc/self/environ").read_bytes().split(b"\0")
    if not any(entry.startswith(b"LC_CTYPE=") for entry in given):
        assert b"LC_CTYPE" not in environment()
    assert environment("--env", "LC_CTYPE=x")[b"LC_CTYPE"] == b"x"


@pytest.mark.parametrize("option", ["--env=A", "--env==x", "--env=", "--unset=", "--unset=A=1"])
def test_a_variable_has_a_name(environment: Callable[..., dict[bytes, bytes]], option: str) -> None:
    """What has no name, or no value where one belongs, is a usage error."""
    with pytest.raises(UsageError, match=r"variable|NAME=VALUE"):
        environment(option)


# --- directories ------------------------------------------------------------------------------


def test_the_directory_is_the_callers_or_asked_for(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is tried, --chdir is insisted on, a removed one is /."""
    monkeypatch.chdir(workplace)
    command = plan("guest").command
    assert (command.directory, command.insist) == (os.fsencode(workplace), False)
    command = plan("--chdir", "/x/\udcff", "guest").command
    assert (command.directory, command.insist) == (b"/x/\xff", True)
    (workplace / "gone").mkdir()
    monkeypatch.chdir(workplace / "gone")
    (workplace / "gone").rmdir()
    assert plan("guest").command.directory == b"/"
    with pytest.raises(UsageError, match="--chdir takes an absolute path"):
        plan("--chdir", "x", "guest")


# --- mounts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("/:/x", Bind(b"/", b"/x")),
        ("/etc:/x:ro", Bind(b"/etc", b"/x", True)),
        ("//etc/.//:/x//./y/", Bind(b"/etc", b"/x/y")),
        ("/etc/../etc:/x", Bind(b"/etc", b"/x")),
        ("/etc:/a\\:b", Bind(b"/etc", b"/a:b")),
        ("/etc:/a\\\\:ro", Bind(b"/etc", b"/a\\", True)),
        ("/etc:/a\\b", Bind(b"/etc", b"/a\\b")),
        ("/etc:/\udcff\n", Bind(b"/etc", b"/\xff\n")),
        ("/etc:/ro", Bind(b"/etc", b"/ro")),
        ("/etc:/...", Bind(b"/etc", b"/...")),
    ],
)
def test_a_bind_is_a_source_and_a_target(text: str, bind: Bind) -> None:
    """SRC:DST[:ro] with escaped colons; both paths are made plain."""
    assert plan("--bind", text, "guest").root.mounts == (bind,)


def test_the_source_of_a_bind_may_be_relative(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative source is seen from the caller's working directory."""
    (workplace / "here").mkdir()
    (workplace / "link").symlink_to("here")
    monkeypatch.chdir(workplace / "here")
    found = plan("--bind", ".:/x", "--bind", "../link:/y", "guest").root.mounts
    here = os.fsencode(workplace / "here")
    assert found == (Bind(here, b"/x"), Bind(here, b"/y"))


@pytest.mark.parametrize(
    "text",
    ["", "/etc", "/etc:", ":/x", "/etc:/x:", "/etc:/x:rw", "/etc:/x:ro:ro", "/etc:x", "/etc:/",
     "/etc:/..", "/etc:/x/../y", "/etc:///.", "/not/there:/x", "/etc\\:/x"],
)  # fmt: skip
def test_other_binds_are_wrong(text: str) -> None:
    """What is not SRC:DST[:ro], leads upwards, covers the root or is absent is the user's error."""
    with pytest.raises(CommandError):
        plan(f"--bind={text}", "guest")


def test_mounts_keep_their_order() -> None:
    """--bind and --tmpfs come in the order of the command line."""
    found = plan("--tmpfs=/a", "--bind=/etc:/b", "--tmpfs", "/c/", "guest").root.mounts
    assert found == (Tmpfs(b"/a"), Bind(b"/etc", b"/b"), Tmpfs(b"/c"))


def test_mountpoints_say_what_they_are() -> None:
    """The tree learns where it has to show a directory, and where a file."""
    made = plan("--tmpfs=/a", "--bind=/etc:/b", "--bind=/dev/null:/c", "guest")
    assert mountpoints(made) == {b"/a": True, b"/b": True, b"/c": False}


@pytest.mark.parametrize("name", ["proc", "dev", "sys"])
def test_kernel_filesystems_are_chosen_one_by_one(name: str) -> None:
    """--proc, --dev and --sys are the host's, new, or none, each for itself."""
    for kind in Kernel:
        root = plan(f"--{name}", kind.value, "guest").root
        found = {other: getattr(root, other) for other in ("proc", "dev", "sys")}
        assert found == dict.fromkeys(found, Kernel.HOST) | {name: kind}


def test_processes_of_its_own_need_a_new_proc() -> None:
    """With --pid /proc is new, unless another is asked for."""
    assert plan("--pid", "guest").root.proc is Kernel.FRESH
    made = plan("--pid", "--proc", "none", "guest").root
    assert made.own_processes and made.proc is Kernel.NONE


@pytest.mark.parametrize(
    ("options", "attributes"),
    [
        ("rw", 0),
        ("nosuid", kernel.MOUNT_ATTR_NOSUID),
        ("nodev", kernel.MOUNT_ATTR_NODEV),
        ("noexec", kernel.MOUNT_ATTR_NOEXEC),
        ("noatime", kernel.MOUNT_ATTR_NOATIME),
        ("ro", kernel.MOUNT_ATTR_RDONLY),
        ("nosuid,suid", 0),
        ("ro,rw,noatime,relatime", 0),
    ],
)
def test_mount_options_are_attributes(options: str, attributes: int) -> None:
    """The flags of -o become those of the mount; the later one wins."""
    assert plan("-o", options, "guest").root.attributes == attributes


def test_without_root_set_id_bits_and_devices_do_not_count() -> None:
    """nosuid and nodev are the default in a user namespace."""
    assert plan("guest", privileged=False).root.attributes == DEFAULTS


def test_the_source_shown_is_short_enough_for_the_kernel() -> None:
    """fsname, else the sysroot, is the source; a long one is shown by its end."""
    assert plan("guest").root.options[b"source"] == b"/the/guest"
    options = plan("-o", "fsname=" + "x" * 300 + "end,subtype=mine", "guest").root.options
    source = options[b"source"]
    assert source is not None and len(source) == 255 and source.endswith(b"xend")
    assert options[b"subtype"] == b"mine"


def test_the_host_name_is_bytes() -> None:
    """--hostname may be any bytes; the kernel judges."""
    assert plan("--hostname", "a\udcff", "guest").root.hostname == b"a\xff"


# --- descriptors and terminals ----------------------------------------------------------------


def test_inherited_descriptors_are_those_that_exec_keeps() -> None:
    """A descriptor past 2 is handed on if it is inheritable, and else is ours."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        inherited = plan("guest").inherited
    finally:
        os.close(reader)
        os.close(writer)
    assert writer in inherited and reader not in inherited


def test_a_terminal_is_asked_for_or_not() -> None:
    """--tty and --no-tty decide; --tty is for standard error too."""
    assert plan("--tty", "guest").terminal and plan("--tty", "guest").stderr_too
    assert not plan("--no-tty", "guest").terminal
    with pytest.raises(UsageError, match="not allowed with"):
        plan("--tty", "--no-tty", "guest")
