"""Which file a command is, and why it does not start: real failures of a real kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysroot_fs.guest.plan import Refusal
from sysroot_fs.guest.program import check, explain, find, is_plain_script
from tests.children import in_child
from tests.matrix import guests
from tests.programs import GLIBC, MUSL, inside, program

Said = tuple[int, str]
PATH = {b"PATH": b"/usr/local/bin:/usr/bin:/bin"}


@pytest.fixture(scope="session")
def root(session_workplace: Path) -> Path:
    """The musl guest root, for this module alone."""
    place = session_workplace / "guest-program"
    guests.unpack(place)
    return place


@pytest.fixture
def guest(root: Path) -> Iterator[Path]:
    """The guest root with an empty /lab, which is gone afterwards."""
    work = root / "lab"
    work.mkdir()
    yield root
    shutil.rmtree(work)


def put(path: Path, content: str | bytes = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    """Write a file that may be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def found(command: bytes, environment: Mapping[bytes, bytes] = PATH) -> bytes | Said:
    """What `find` finds, or the refusal."""
    try:
        return find(command, environment)
    except Refusal as refusal:
        return refusal.status, str(refusal)


def started(path: bytes, *arguments: bytes, fallback: str = "all") -> Said:
    """Really execute *path*, which must fail, and explain it; in a process that may be lost."""
    argv = [path, *arguments]
    try:
        os.execve(path, argv, PATH)
    except OSError as error:
        refusal = explain(path, argv, error, PATH, fallback=fallback)
        return refusal.status, str(refusal)
    raise AssertionError("never reached")


def explained(
    guest: Path, path: bytes, *arguments: bytes, fallback: str = "all", uid: int = 0
) -> Said:
    """What is said of *path* after it has failed to start in the guest."""
    return inside(guest, lambda: started(path, *arguments, fallback=fallback), uid=uid)


# --- find -------------------------------------------------------------------------------------


def test_a_command_is_found_by_path(guest: Path) -> None:
    """The first directory of PATH that has it wins."""
    assert inside(guest, lambda: found(b"ls")) == b"/usr/bin/ls"
    assert inside(guest, lambda: found(b"ls", {b"PATH": b"/absent:/bin:/usr/bin"})) == b"/bin/ls"


def test_without_path_there_is_a_default(guest: Path) -> None:
    """Where PATH is not set, the usual directories are searched."""
    assert inside(guest, lambda: found(b"sh", {})) == b"/bin/sh"


@pytest.mark.parametrize("path", [b"", b":/absent", b"/absent:"])
def test_an_empty_part_of_path_is_the_working_directory(guest: Path, path: bytes) -> None:
    """An empty part finds what lies here, under a name that execve takes for a path."""
    put(guest / "lab/tool")

    def work() -> bytes | Said:
        os.chdir("/lab")
        return found(b"tool", {b"PATH": path})

    assert inside(guest, work) == b"./tool"


@pytest.mark.parametrize("command", [b"/lab/tool", b"lab/tool", b"./lab/tool"])
def test_a_command_with_a_slash_is_itself(guest: Path, command: bytes) -> None:
    """PATH has no say in a command with a slash."""
    put(guest / "lab/tool")
    assert inside(guest, lambda: found(command, {b"PATH": b"/bin"})) == command


def test_a_refusal_lists_where_it_was_looked_for(guest: Path) -> None:
    """Each directory of PATH is named once."""
    path = {b"PATH": b"/usr/bin:/bin:/usr/bin"}
    assert inside(guest, lambda: found(b"foo", path)) == (
        127,
        "`foo` was not found in the guest: looked in /usr/bin, /bin",
    )


def test_what_may_not_be_executed_is_passed_over(guest: Path) -> None:
    """A later directory's program wins over an earlier file without x, as in shells."""
    put(guest / "lab/a/tool", mode=0o644)
    put(guest / "lab/b/tool")
    assert inside(guest, lambda: found(b"tool", {b"PATH": b"/lab/a:/lab/b"})) == b"/lab/b/tool"


def test_the_first_match_that_may_not_be_executed_is_reported(guest: Path) -> None:
    """Where nothing better comes, the first match says why not."""
    put(guest / "lab/a/tool", mode=0o644)
    (guest / "lab/b/tool").mkdir(parents=True)
    assert inside(guest, lambda: found(b"tool", {b"PATH": b"/lab/a:/lab/b:/absent"})) == (
        126,
        "`/lab/a/tool` may not be executed: it has no x permission (mode 0644)",
    )


def test_a_program_of_somebody_else(guest: Path) -> None:
    """An x permission for another user is no x permission, and its owner is named."""
    put(guest / "lab/tool", mode=0o700)
    assert inside(guest, lambda: found(b"/lab/tool"), uid=1000) == (
        126,
        "`/lab/tool` may not be executed: "
        "its x permission is not for this user (mode 0700, owner 0)",
    )


def test_a_shut_directory_of_path_is_mentioned(guest: Path) -> None:
    """Nobody knows what a directory holds that may not be searched: 127 with a remark."""
    put(guest / "lab/shut/tool")
    (guest / "lab/shut").chmod(0o700)
    path = {b"PATH": b"/lab/shut:/bin"}
    assert inside(guest, lambda: found(b"tool", path), uid=1000) == (
        127,
        "`tool` was not found in the guest: looked in /lab/shut, /bin "
        "(/lab/shut/tool cannot be reached: this user may not search /lab/shut)",
    )


def test_a_dangling_link_in_path_is_mentioned(guest: Path) -> None:
    """A link whose target the guest lacks explains why the command is not there."""
    (guest / "lab/tool").symlink_to("/opt/tool-3")
    assert inside(guest, lambda: found(b"tool", {b"PATH": b"/lab"})) == (
        127,
        "`tool` was not found in the guest: looked in /lab "
        "(/lab/tool is a symbolic link to /opt/tool-3, which the guest lacks)",
    )


def _link(path: Path, target: str) -> None:
    path.symlink_to(target)


OBSTACLES: list[tuple[Callable[[Path], object], bytes, int, str]] = [
    (lambda at: None, b"", 127, "the command is empty: name a program of the guest"),
    (lambda at: None, b"/bin/foo", 127, "`/bin/foo` was not found in the guest: looked in /bin"),
    (lambda at: None, b"bin/foo", 127, "`bin/foo` was not found in the guest: looked in /bin"),
    (
        lambda at: None,
        b"/lab/a/b/foo",
        127,
        "`/lab/a/b/foo` was not found in the guest: there is no directory /lab/a",
    ),
    (
        lambda at: put(at / "file"),
        b"/lab/file/foo",
        127,
        "`/lab/file/foo` was not found in the guest: /lab/file is not a directory",
    ),
    (
        lambda at: _link(at / "tool", "gone"),
        b"/lab/tool",
        127,
        "`/lab/tool` is a symbolic link to gone, which the guest lacks",
    ),
    (
        lambda at: _link(at / "d", "/opt/d"),
        b"/lab/d/tool",
        127,
        "`/lab/d/tool` was not found in the guest: "
        "/lab/d is a symbolic link to /opt/d, which the guest lacks",
    ),
    (
        lambda at: _link(at / "loop", "loop"),
        b"/lab/loop",
        126,
        "`/lab/loop` leads through symbolic links that go round in a circle",
    ),
    (lambda at: None, b"/lab", 126, "`/lab` is a directory"),
    (
        lambda at: os.mkfifo(at / "fifo"),
        b"/lab/fifo",
        126,
        "`/lab/fifo` may not be executed: it is not a file but a device, fifo or socket",
    ),
    (
        lambda at: put(at / "shut/tool").parent.chmod(0o700),
        b"/lab/shut/tool",
        126,
        "`/lab/shut/tool` cannot be reached: this user may not search /lab/shut",
    ),
    (
        lambda at: None,
        b"/" + b"n" * 300,
        127,
        "`/" + "n" * 199 + "...` was not found in the guest: the name is too long",
    ),
    (
        lambda at: None,
        b"/bin/\x1b[2J\n\xff",
        127,
        r"`/bin/\x1b[2J\n\xff` was not found in the guest: looked in /bin",
    ),
]


@pytest.mark.parametrize(
    ("make", "command", "status", "said"), OBSTACLES, ids=range(len(OBSTACLES))
)
def test_each_obstacle_has_its_sentence(
    guest: Path, make: Callable[[Path], object], command: bytes, status: int, said: str
) -> None:
    """What is wrong with a command is told apart, and its name cannot move the cursor."""
    make(guest / "lab")
    assert inside(guest, lambda: found(command), uid=1000) == (status, said)


def test_a_mount_with_noexec_is_told(guest: Path) -> None:
    """A program with x on a mount with noexec may not be executed, before and after trying."""
    work = guest / "lab"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "tmpfs", work], check=True)
    try:
        put(work / "tool")
        said = (126, "`/lab/tool` may not be executed: it lies on a mount with noexec")
        assert inside(guest, lambda: found(b"/lab/tool")) == said
        assert explained(guest, b"/lab/tool") == said
    finally:
        subprocess.run(["umount", work], check=True)


def test_the_effective_user_counts(guest: Path) -> None:
    """Whether a file may be executed is asked for whom execve will ask."""
    put(guest / "lab/tool", mode=0o700)

    def work() -> bytes | Said:
        os.setresuid(1000, 0, 0)
        return found(b"/lab/tool")

    assert inside(guest, work) == b"/lab/tool"


_FRESH = r"""
import os, sys
from sysroot_fs.guest.plan import Refusal
from sysroot_fs.guest.program import check, explain, find, is_plain_script
os.chroot(sys.argv[1])
os.chdir("/")
imported = []
sys.addaudithook(lambda event, about: event == "import" and imported.append(about[0]))
said = []
for call in (
    lambda: find(b"l\x1b\xff\xe2\x80\x8b", {}),
    lambda: check(find(b"ls", {}), {}),
    lambda: check(b"/lab/needy", {}),
    lambda: os.execve(b"/lab/other", [b"other"], {}),
    lambda: os.execve(b"/lab/text", [b"text"], {}),
):
    try:
        call()
    except Refusal as refusal:
        said.append(str(refusal))
    except OSError as error:
        said.append(str(explain(b"/lab/other", [b"other"], error, {}, fallback="safe")))
print(len(said), is_plain_script(b"/lab/text"), imported)
"""


def test_nothing_is_imported_inside_the_guest(guest: Path) -> None:
    """In a fresh Python, everything is imported before the root is changed."""
    program(guest / "lab/needy", MUSL, "libabsent.so")
    program(guest / "lab/other", GLIBC)
    put(guest / "lab/text", "echo\n")
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, guest],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("4 True []\n", "")


# --- explain ----------------------------------------------------------------------------------


def test_a_missing_loader_is_named(guest: Path) -> None:
    """A program of glibc in a guest of musl: the loader is what is missing."""
    program(guest / "lab/tool", GLIBC)
    assert explained(guest, b"/lab/tool") == (
        127,
        f"`/lab/tool` needs the loader {GLIBC} (glibc), which the guest lacks",
    )


@pytest.mark.parametrize("fallback", ["safe", "none"])
def test_a_missing_loader_may_be_the_fallback_option(guest: Path, fallback: str) -> None:
    """With a fence around the host, its loader is not used, and that is said."""
    program(guest / "lab/tool", "/lib/ld-musl-absent.so.1")
    assert explained(guest, b"/lab/tool", fallback=fallback) == (
        127,
        "`/lab/tool` needs the loader /lib/ld-musl-absent.so.1 (musl), which the guest lacks: "
        f"the host's is not used with fallback={fallback}: "
        "install the guest's own, or use fallback=all",
    )


def test_a_missing_interpreter_is_named(guest: Path) -> None:
    """Arguments and blanks of the #! line are not part of the name."""
    put(guest / "lab/tool", "#! \t/opt/python3 -u -\n")
    assert explained(guest, b"/lab/tool") == (
        127,
        "`/lab/tool` is a script for /opt/python3, which the guest lacks",
    )


def test_the_interpreter_of_an_interpreter_is_named(guest: Path) -> None:
    """The whole chain is told, down to what is missing."""
    put(guest / "lab/tool", "#!/lab/deep\n")
    put(guest / "lab/deep", "#!/lab/prog\n")
    program(guest / "lab/prog", "/lib/absent")
    assert explained(guest, b"/lab/tool") == (
        127,
        "`/lab/tool` is a script for /lab/deep, which is a script for /lab/prog, "
        "which needs the loader /lib/absent, which the guest lacks",
    )


def test_windows_line_ends_are_told(guest: Path) -> None:
    """A carriage return is part of the interpreter's name to the kernel."""
    put(guest / "lab/tool", "#!/bin/sh\r\necho\r\n")
    assert explained(guest, b"/lab/tool", fallback="safe") == (
        127,
        r"`/lab/tool` is a script for /bin/sh\r, which the guest lacks: "
        r"the script has Windows line ends, whose \r is part of the name",
    )


def test_an_interpreter_that_may_not_be_executed(guest: Path) -> None:
    """The script is in order and its interpreter is not."""
    put(guest / "lab/tool", "#!/lab/plain\n")
    put(guest / "lab/plain", mode=0o644)
    assert explained(guest, b"/lab/tool") == (
        126,
        "`/lab/tool` is a script for /lab/plain, "
        "which may not be executed: it has no x permission (mode 0644)",
    )


def test_a_loader_that_is_no_loader(guest: Path) -> None:
    """A loader that is text is named with the kernel's reason."""
    put(guest / "lab/ld-musl-text.so.1", "text" * 100)
    program(guest / "lab/tool", "/lab/ld-musl-text.so.1")
    status, said = explained(guest, b"/lab/tool")
    assert status == 126
    assert said.startswith("`/lab/tool` needs the loader /lab/ld-musl-text.so.1, which the kernel")


def _elf(guest: Path, at: int, value: bytes) -> bytes:
    content = bytearray(program(guest / "model", MUSL).read_bytes())
    content[at : at + len(value)] = value
    return bytes(content)


def test_a_program_for_another_machine(guest: Path) -> None:
    """It says for which machine it is, and which one this is."""
    put(guest / "lab/tool", _elf(guest, 18, b"\xb7\0"))
    assert explained(guest, b"/lab/tool") == (
        126,
        "`/lab/tool` is for aarch64, this machine runs x86_64 programs",
    )


def test_an_interpreter_for_another_machine(guest: Path) -> None:
    """A script whose interpreter is for another machine says which of them it is."""
    put(guest / "lab/other", _elf(guest, 18, b"\xf3\0"))
    put(guest / "lab/tool", "#!/lab/other\n")
    assert explained(guest, b"/lab/tool") == (
        126,
        "`/lab/tool` is a script for /lab/other, "
        "which is for riscv64, this machine runs x86_64 programs",
    )


FOREIGN = [
    (b"", "is empty or cannot be read"),
    (b"echo hello\n", "is text without a first line `#!INTERPRETER`"),
    (b"\xcf\xfa\xed\xfe\x07\0\0\1" + bytes(64), "is a macOS program"),
    (b"\xca\xfe\xba\xbe\0\0\0\2" + bytes(64), "is a macOS program"),
    (b"\xca\xfe\xba\xbe\0\0\0\x41" + bytes(64), "is a Java class"),
    (b"MZ\x90\0\3\0\0\0" + bytes(64), "is a Windows program"),
    (b"\x7fELF", "is a damaged or cut off ELF file"),
    (b"\x7fELF\2\1\1" + bytes(20), "is a damaged or cut off ELF file"),
    (b"#!\n", "is a script whose first line names no interpreter"),
    (b"#!" + b"/a" * 200 + b"\n", "is a script whose first line is longer than 256 bytes"),
    (b"\0\1\2\3", "is no program: neither an ELF file nor a script"),
]


@pytest.mark.parametrize(("content", "said"), FOREIGN, ids=range(len(FOREIGN)))
def test_what_the_kernel_takes_for_no_program(guest: Path, content: bytes, said: str) -> None:
    """ENOEXEC is explained by what the file is."""
    put(guest / "lab/tool", content)
    assert explained(guest, b"/lab/tool") == (126, f"`/lab/tool` {said}")


def test_an_object_file_is_no_program(guest: Path) -> None:
    """Who forgot to link is told so."""
    put(guest / "lab/tool", _elf(guest, 16, b"\1\0"))
    status, said = explained(guest, b"/lab/tool")
    assert (status, said) == (126, "`/lab/tool` is an object file and no program: link it first")


def test_an_argument_that_is_too_long(guest: Path) -> None:
    """E2BIG names the limit that was passed."""
    assert explained(guest, b"/bin/ls", b"x" * 200_000) == (
        126,
        "`/bin/ls` could not be started: an argument has 200000 bytes, and the kernel takes 131071",
    )


def test_arguments_that_are_too_many(guest: Path) -> None:
    """E2BIG without a long argument gives the sums."""
    status, said = explained(guest, b"/bin/ls", *[b"x" * 100_000] * 100)
    assert status == 126
    assert said.startswith("`/bin/ls` could not be started: the arguments (10000108 bytes) and")


def test_a_program_that_is_being_written(guest: Path) -> None:
    """ETXTBSY says what keeps it from starting."""
    path = program(guest / "lab/tool", MUSL)
    with open(path, "r+b"):
        assert explained(guest, b"/lab/tool") == (
            126,
            "`/lab/tool` may not be executed: somebody has it open for writing",
        )


def test_scripts_of_scripts(guest: Path) -> None:
    """ELOOP of a chain of scripts is not one of symbolic links."""
    for number in range(8):
        put(guest / f"lab/{number}", f"#!/lab/{number + 1}\n")
    status, said = explained(guest, b"/lab/0")
    assert status == 126
    assert said.endswith("makes more than 4 scripts of scripts, which the kernel does not follow")


def test_a_program_that_cannot_be_read(guest: Path) -> None:
    """With mode 0111 nobody can see which loader is missing, and that is said."""
    program(guest / "lab/tool", "/lib/absent").chmod(0o111)
    status, said = explained(guest, b"/lab/tool", uid=1000)
    assert status == 127
    assert said.startswith("`/lab/tool` is there, but the loader or interpreter that it asks for")


def test_other_errors_are_given_in_the_systems_words(guest: Path) -> None:
    """An error without a story of its own keeps strerror's."""
    error = OSError(12, "Cannot allocate memory")
    refusal = inside(guest, lambda: explain(b"/bin/ls", [b"ls"], error, PATH))
    assert (refusal.status, str(refusal)) == (
        126,
        "`/bin/ls` could not be started: cannot allocate memory",
    )


def test_a_file_that_went_away(guest: Path) -> None:
    """What `find` saw and execve did not is told as missing."""
    assert explained(guest, b"/lab/tool") == (
        127,
        "`/lab/tool` was not found in the guest: looked in /lab",
    )


# --- check: what is not about libraries -------------------------------------------------------


def _checked(path: bytes) -> Said | None:
    try:
        check(path, PATH)
    except Refusal as refusal:
        return refusal.status, str(refusal)
    return None


def test_the_interpreter_of_a_script_is_checked(guest: Path) -> None:
    """A script cannot run where its interpreter lacks a library."""
    program(guest / "lab/inner", MUSL, "libabsent.so")
    put(guest / "lab/tool", "#!/lab/inner -x\n")
    status, said = inside(guest, lambda: _checked(b"/lab/tool")) or (0, "")
    assert status == 127
    assert said.startswith(
        "`/lab/tool` is a script for /lab/inner, which needs the library libabsent.so, which"
    )


def test_what_execve_will_refuse_is_left_to_it(guest: Path) -> None:
    """A missing loader, interpreter or file, a circle of scripts and garbage pass `check`."""
    program(guest / "lab/glibc", GLIBC, "libabsent.so")
    put(guest / "lab/orphan", "#!/absent\n")
    put(guest / "lab/circle", "#!/lab/circle\n")
    put(guest / "lab/garbage", os.urandom(4096))
    names = ("glibc", "orphan", "circle", "garbage", "absent", "")
    assert inside(guest, lambda: [_checked(f"/lab/{name}".encode()) for name in names]) == [
        None
    ] * len(names)


def test_a_program_that_cannot_be_read_is_not_checked(guest: Path) -> None:
    """Mode 0111 hides what the program needs, and the kernel decides."""
    program(guest / "lab/tool", MUSL, "libabsent.so").chmod(0o111)
    assert inside(guest, lambda: _checked(b"/lab/tool"), uid=1000) is None
    assert inside(guest, lambda: _checked(b"/lab/tool")) is not None


def test_every_program_of_the_guest_passes(guest: Path) -> None:
    """Nothing that the guest has itself is refused."""
    names = [
        f"/{at}/{name}".encode() for at in ("bin", "usr/bin") for name in os.listdir(guest / at)
    ]
    assert len(names) > 100
    assert inside(guest, lambda: [said for said in map(_checked, names) if said]) == []


# --- plain scripts ----------------------------------------------------------------------------

PLAIN = [
    (b"echo hello\n", True),
    (b"echo hello", True),
    (b": text, then a payload\n\0\1\2", True),
    (b"MZ=1; echo $MZ\n", True),
    (b"", False),
    (b"#!/absent\n", False),
    (b"\x7fELF", False),
    (b"MZ\x90\0\3\n", False),
    (b"MZ\n\0", False),
    (b"\0echo\n", False),
]


@pytest.mark.parametrize(("content", "plain"), PLAIN, ids=range(len(PLAIN)))
def test_a_plain_script_is_told_from_a_binary(workplace: Path, content: bytes, plain: bool) -> None:
    """Text without #! is what shells hand to /bin/sh."""
    assert is_plain_script(bytes(put(workplace / "tool", content))) is plain


def test_a_plain_script_that_cannot_be_read_is_none(workplace: Path) -> None:
    """A file that sh could not read, and a directory, are no scripts."""
    path = bytes(put(workplace / "tool", "echo\n", mode=0o111))
    assert in_child(lambda: is_plain_script(path), uid=1000) is False
    assert not is_plain_script(bytes(workplace))


@given(line=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_first_line_has_a_sentence(session_workplace: Path, line: bytes) -> None:
    """Whatever follows #!, the answer is a sentence on one line, and `check` lets it through."""
    path = bytes(put(session_workplace / "any-line", b"#!" + line))
    assert _checked(path) is None
    refusal = explain(path, [path], OSError(8, ""), PATH)
    assert refusal.status in (126, 127)
    assert str(refusal).isprintable() and not str(refusal).endswith(".")
