"""`run` without root: a user namespace in which the caller may do what it may outside, no more."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sysroot_fs.guest import identity
from tests import users
from tests.matrix import guests
from tests.users import CAP_SETFCAP, CAP_SYS_ADMIN, UID

Finished = subprocess.CompletedProcess[str]
pytestmark = pytest.mark.usefixtures("door")

RUN: Final = (sys.executable, "-m", "sysroot_fs", "run")


@pytest.fixture(scope="module")
def guest(session_workplace: Path) -> Path:
    """A guest root that belongs to the user."""
    sysroot = session_workplace / "users-guest"
    guests.unpack(sysroot)
    for path in (sysroot, *sysroot.rglob("*")):
        os.chown(path, UID, UID, follow_symlinks=False)
    return sysroot


@pytest.fixture
def host(workplace: Path) -> Path:
    """A host of the test's own; it belongs to root."""
    made = workplace / "host"
    made.mkdir()
    return made


@pytest.fixture
def place(guest: Path) -> Iterator[Path]:
    """A new directory of the user's, in the guest as /place."""
    made = guest / "place"
    made.mkdir()
    os.chown(made, UID, UID)
    yield made
    shutil.rmtree(made)


def call(words: Iterable[str | Path], **who: Any) -> Finished:
    """What came of a command of somebody else's."""
    return subprocess.run(
        users.command(*words, **who),
        cwd=users.CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def run(guest: Path, host: Path) -> Callable[..., Finished]:
    """Run a shell script in the guest, over the test's own host."""

    def run_script(script: str, *options: str, **who: Any) -> Finished:
        words = [*RUN, "-o", f"host={host}", *options, str(guest), "--", "/bin/sh", "-c", script]
        return call(words, **who)

    return run_script


@pytest.fixture
def run_python(guest: Path) -> Callable[..., Finished]:
    """Run a Python script in the guest: the machine's interpreter, on a host that is read only."""

    def run_script(script: str, *options: str, **who: Any) -> Finished:
        words = [*RUN, "-o", "host_writes=ro", *options, str(guest), "--", sys.executable, "-c"]
        return call([*words, f"import os, socket\n{script}"], **who)

    return run_script


def make(path: Path, text: str = "", *, uid: int = 0, gid: int = 0, mode: int = 0o644) -> Path:
    """A file of somebody's."""
    path.write_text(text)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def make_directory(path: Path, mode: int = 0o755, uid: int = 0) -> Path:
    """A directory of somebody's."""
    path.mkdir()
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


# --- who one is ---------------------------------------------------------------------------------


def test_the_caller_is_root_inside(run: Callable[..., Finished]) -> None:
    """Without options the command is root, for programs that want to be."""
    assert run("id -u; id -g").stdout == "0\n0\n"


def test_map_root_says_the_default(run: Callable[..., Finished]) -> None:
    """--map-root makes the caller root inside."""
    assert run("id -u", "--map-root").stdout == "0\n"


def test_map_self_keeps_the_caller(run: Callable[..., Finished]) -> None:
    """With --map-self the command has the caller's own numbers."""
    assert run("id -u; id -g", "--map-self").stdout == f"{UID}\n{UID}\n"


@pytest.mark.parametrize("option", ["--map-root", "--map-self"])
def test_what_is_made_is_the_callers(
    run: Callable[..., Finished], place: Path, option: str
) -> None:
    """New files, directories and links belong to the caller outside, and to nobody else."""
    done = run("cd /place && touch file && mkdir directory && ln -s x link && mkfifo fifo", option)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.lstat() for path in place.iterdir()}
    assert set(made) == {"file", "directory", "link", "fifo"}
    assert {(one.st_uid, one.st_gid) for one in made.values()} == {(UID, UID)}


def test_another_user_is_refused(run: Callable[..., Finished]) -> None:
    """--user with anybody but the caller is refused with the reason."""
    done = run("true", "--user", "5")
    assert (done.returncode, done.stderr) == (
        125,
        "sysroot-fs: --user 5 needs root: without it the guest has one user only, 0\n",
    )


def test_root_without_the_right_to_mount(run: Callable[..., Finished]) -> None:
    """Root that has lost CAP_SYS_ADMIN goes through a user namespace too."""
    done = run("cat /proc/self/uid_map", uid=0, gid=0, drop=[CAP_SYS_ADMIN])
    assert (done.stdout.split(), done.stderr) == (["0", "0", "1"], "")


# --- never more rights than outside -------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [
        "cat $f/file",
        "echo changed > $f/file",
        "chmod 644 $f/file",
        "chown 0:0 $f/file",
        "rm -f $f/file",
        "mv $f/file $f/moved",
        "touch $f/new",
    ],
)
def test_the_files_of_root_stay_closed(
    run: Callable[..., Finished], host: Path, guest: Path, place: Path, action: str
) -> None:
    """What the caller may do with its own files it may not with root's, on either layer."""
    closed = [make_directory(host / "roots"), make_directory(place / "roots")]
    for directory, uid in ((closed[0], 0), (closed[1], 0), (make_directory(place / "own"), UID)):
        os.chown(directory, uid, uid)
        make(directory / "file", "secret\n", uid=uid, gid=uid, mode=0o600)
    before = [(path, path.lstat()) for top in closed for path in sorted(top.rglob("*"))]
    done = run(f"for f in /place/own /roots /place/roots; do {action} >&2 && echo done $f; done")
    assert done.stdout == "done /place/own\n", done.stderr
    after = [(path, path.lstat()) for top in closed for path in sorted(top.rglob("*"))]
    assert [(p, s.st_mode, s.st_mtime_ns, s.st_size) for p, s in before] == [
        (p, s.st_mode, s.st_mtime_ns, s.st_size) for p, s in after
    ]


@pytest.mark.parametrize("option", ["--map-root", "--map-self"])
def test_a_directory_open_to_all_can_be_written(
    run: Callable[..., Finished], host: Path, option: str
) -> None:
    """In a host's /tmp, which is root's and sticky, files are made and taken away again."""
    make_directory(host / "shared", 0o1777)
    done = run("cd /shared && echo x > one && mv one two && cat two && rm two", option)
    assert (done.stdout, done.stderr) == ("x\n", "")


@pytest.mark.parametrize("door", ["kernel"], indirect=True)
def test_nothing_is_lent_to_the_kernel(
    run: Callable[..., Finished], place: Path, workplace: Path
) -> None:
    """Passthrough is root's: it is off, files are read and written, and the log says so once."""
    log = make(workplace / "log", uid=UID)
    options = ("-o", f"opens=passthrough,log={log}")
    done = run("echo one >/place/a; echo two >/place/b; cat /place/a /place/b", *options)
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr
    assert log.read_text().count("passthrough is off") == 1


@pytest.mark.parametrize("action", ["rm -f other", "mv other mine", "rmdir theirs"])
def test_in_a_sticky_directory_the_others_files_stay(
    run: Callable[..., Finished], host: Path, action: str
) -> None:
    """The sticky bit holds although the guest shows every file there as the caller's."""
    shared = make_directory(host / "shared", 0o1777)
    make(shared / "other", uid=2000, mode=0o666)
    make_directory(shared / "theirs", uid=2000)
    done = run(f"cd /shared && {action}")
    assert done.returncode == 1
    assert "Operation not permitted" in done.stderr
    assert sorted(path.name for path in shared.iterdir()) == ["other", "theirs"]


def test_what_is_open_to_all_can_be_written(run: Callable[..., Finished], host: Path) -> None:
    """A file of root's with mode 0666 takes data."""
    file = make(host / "file", mode=0o666)
    assert run("echo text > /file").returncode == 0
    assert file.read_text() == "text\n"


def test_a_shut_directory_shows_nothing(run: Callable[..., Finished], host: Path) -> None:
    """Below a directory of root's with mode 0700 nothing can be listed or reached."""
    make(make_directory(host / "shut", 0o700) / "file", mode=0o666)
    done = run("ls /shut; cat /shut/file")
    assert done.stdout == ""
    assert done.stderr.count("Permission denied") == 2


def test_a_directory_to_walk_through(run: Callable[..., Finished], host: Path) -> None:
    """One of mode 0711 lets a known name be reached, and is not listed."""
    make(make_directory(host / "through", 0o711) / "file", "text\n")
    done = run("ls /through || cat /through/file")
    assert done.stdout == "text\n"
    assert "Permission denied" in done.stderr


def test_set_id_programs_give_nothing(
    run: Callable[..., Finished], guest: Path, host: Path, place: Path
) -> None:
    """A program that is setuid and setgid root runs, with the caller's rights."""
    program = host / "cat"
    shutil.copy(guest / "bin" / "cat", program)
    program.chmod(0o6755)
    make(host / "secret", "secret\n", mode=0o600)
    make(place / "own", "own\n", uid=UID, gid=UID, mode=0o600)
    done = run("/cat /place/own /secret", "--map-self")
    assert done.stdout == "own\n"
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize(("groups", "said"), [((2000,), "text\n"), ((), "")])
def test_the_callers_other_groups_count(
    run: Callable[..., Finished], host: Path, groups: tuple[int, ...], said: str
) -> None:
    """A supplementary group opens what it opens outside, though the guest has no number for it."""
    make(host / "file", "text\n", gid=2000, mode=0o640)
    assert run("cat /file", groups=groups).stdout == said


def test_an_owner_without_a_number(run_python: Callable[..., Finished], place: Path) -> None:
    """chown to a user or a group that the namespace lacks is EINVAL, as on any filesystem there."""
    make(place / "file", uid=UID, gid=UID)
    script = """
for ids in ((5, -1), (-1, 5)):
    try: os.chown("/place/file", *ids)
    except OSError as error: print(error.errno)
os.chown("/place/file", 0, 0)
"""
    done = run_python(script)
    assert (done.stdout.split(), done.returncode) == ([str(errno.EINVAL)] * 2, 0)


def test_devices_cannot_be_made(run: Callable[..., Finished], place: Path) -> None:
    """mknod of a device is EPERM, for it would open what the machine keeps closed."""
    done = run("mknod /place/null c 1 3")
    assert "Operation not permitted" in done.stderr
    assert not list(place.iterdir())


def test_a_device_that_is_there_cannot_be_opened(run: Callable[..., Finished], place: Path) -> None:
    """A device node in the guest root is shown and stays shut."""
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (place / "null").chmod(0o666)
    done = run("test -c /place/null && echo seen; cat /place/null")
    assert done.stdout == "seen\n"
    assert "Permission denied" in done.stderr


def test_fifos_and_sockets_work(run_python: Callable[..., Finished], place: Path) -> None:
    """A fifo and a socket are made, and carry data between two ends in the guest."""
    script = """
os.mkfifo("/place/fifo")
if os.fork() == 0:
    open("/place/fifo", "w").write("through the fifo")
    os._exit(0)
print(open("/place/fifo").read())
server = socket.socket(socket.AF_UNIX); server.bind("/place/socket"); server.listen()
client = socket.socket(socket.AF_UNIX); client.connect("/place/socket"); client.send(b"socket")
print(server.accept()[0].recv(6).decode())
"""
    done = run_python(script)
    assert (done.stdout, done.stderr) == ("through the fifo\nsocket\n", "")
    assert {path.name for path in place.iterdir()} == {"fifo", "socket"}


def test_extended_attributes(run_python: Callable[..., Finished], place: Path) -> None:
    """A user attribute set inside is there outside; a trusted one is root's alone."""
    make(place / "file", uid=UID, gid=UID)
    script = """
os.setxattr("/place/file", "user.name", b"value")
print(os.listxattr("/place/file"))
try: os.setxattr("/place/file", "trusted.name", b"value")
except PermissionError: print("refused")
"""
    assert run_python(script).stdout == "['user.name']\nrefused\n"
    assert os.getxattr(place / "file", "user.name") == b"value"


def _acl(user: int) -> bytes:
    """An access ACL: owner rw, *user* r, group and others nothing, mask r."""
    entries = [(0x01, 6, -1), (0x02, 4, user), (0x04, 0, -1), (0x10, 4, -1), (0x20, 0, -1)]
    return struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, rights, number & 0xFFFFFFFF) for tag, rights, number in entries
    )


def test_acls_name_the_namespaces_users(run_python: Callable[..., Finished], place: Path) -> None:
    """An ACL for root inside is one for the caller outside; one for a stranger is EINVAL."""
    make(place / "file", uid=UID, gid=UID)
    script = f"""
os.setxattr("/place/file", "system.posix_acl_access", {_acl(0)!r})
print(os.getxattr("/place/file", "system.posix_acl_access") == {_acl(0)!r})
try: os.setxattr("/place/file", "system.posix_acl_access", {_acl(77)!r})
except OSError as error: print(error.errno)
"""
    done = run_python(script)
    assert done.stdout.split() == ["True", str(errno.EINVAL)], done.stderr
    assert os.getxattr(place / "file", "system.posix_acl_access") == _acl(UID)


def test_an_acl_for_the_caller_opens(run: Callable[..., Finished], host: Path) -> None:
    """A file of root's whose ACL names the caller can be read."""
    file = make(host / "file", "text\n", mode=0o600)
    os.setxattr(file, "system.posix_acl_access", _acl(UID))
    assert run("cat /file").stdout == "text\n"


# --- what is laid over --------------------------------------------------------------------------


def test_bind(run: Callable[..., Finished], workplace: Path) -> None:
    """A directory of the caller's is bound and written to."""
    source = make_directory(workplace / "source", uid=UID)
    done = run("echo text > /project/file && cat /project/file", "--bind", f"{source}:/project")
    assert (done.stdout, (source / "file").read_text()) == ("text\n", "text\n")


def test_bind_read_only(run: Callable[..., Finished], workplace: Path) -> None:
    """A bind with :ro takes nothing, though the directory is the caller's own."""
    source = make_directory(workplace / "source", uid=UID)
    done = run("touch /project/file", "--bind", f"{source}:/project:ro")
    assert "Read-only file system" in done.stderr


def test_tmpfs(run: Callable[..., Finished], guest: Path) -> None:
    """A tmpfs hides what is there and leaves nothing."""
    before = sorted(os.listdir(guest / "etc"))
    done = run("ls /etc; echo text > /etc/passwd; cat /etc/passwd", "--tmpfs", "/etc")
    assert (done.stdout, sorted(os.listdir(guest / "etc"))) == ("text\n", before)


def test_hostname(run: Callable[..., Finished]) -> None:
    """The guest has the name that it is given, and the machine keeps its own."""
    before = os.uname().nodename
    assert run("hostname", "--hostname", "elsewhere").stdout == "elsewhere\n"
    assert os.uname().nodename == before


def test_a_process_namespace(run: Callable[..., Finished]) -> None:
    """With --pid the guest sees its own processes and no others."""
    done = run("ps -o pid,comm | tail -n +2 | wc -l; test -d /proc/1 && echo $$", "--pid")
    count, shell = done.stdout.split()
    assert int(count) <= 5
    assert int(shell) <= 3


def test_a_fresh_dev(run: Callable[..., Finished]) -> None:
    """A fresh /dev has working devices and nothing of the machine's own."""
    script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c; ls /dev; ls /dev/pts"
    first, *names = run(script, "--dev", "fresh").stdout.split()
    assert first == "4"
    assert {"null", "zero", "random", "tty", "pts", "shm", "fd"} <= set(names)
    assert not {"fuse", "kmsg", "mem", "sda", "vda"} & set(names)


@pytest.mark.parametrize(
    ("option", "advice"),
    [("--sys", "use --sys host or none"), ("--proc", "add --pid, or use --proc host or none")],
)
def test_a_fresh_kernel_tree_is_refused(
    run: Callable[..., Finished], option: str, advice: str
) -> None:
    """The kernel gives no new sysfs to a user, and no new proc without a process namespace."""
    done = run("true", option, "fresh")
    assert (done.returncode, done.stderr) == (
        125,
        f"sysroot-fs: without root a fresh /{option[2:]} cannot be mounted here: {advice}\n",
    )


def test_in_a_user_namespace_of_the_callers_own(guest: Path, host: Path, place: Path) -> None:
    """Who is root in a user namespace already needs no other one, and writes to the host's /tmp."""
    make_directory(host / "shared", 0o1777)
    script = "touch /shared/new /place/new && cat /proc/self/uid_map"
    words = (*RUN, "-o", f"host={host}", guest, "--", "/bin/sh", "-c", script)
    done = call(("unshare", "--user", "--map-root-user", *words))
    assert (done.stdout.split(), done.stderr) == (["0", str(UID), "1"], "")
    assert (host / "shared" / "new").stat().st_uid == UID


# --- machines that forbid it --------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 3, 4])
def test_no_processes_left(guest: Path, host: Path, processes: int) -> None:
    """Where ulimit -u allows no more of them a sentence says that it is a limit."""
    limit = ["bash", "-c", f'ulimit -u {processes}; exec "$@"', "bash"]
    words = [*RUN, "--host", str(host), str(guest), "--", "true"]
    done = subprocess.run(
        # One that no other test is, for they are counted by user.
        users.command(*limit, *words, uid=1779 + processes, gid=1779),
        cwd=users.CHECKOUT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 125, done
    what = "resource temporarily unavailable|no thread can be started"
    assert re.fullmatch(rf"sysroot-fs: ({what}): a limit of .*\n", done.stderr), done


def test_no_user_namespaces_left(run: Callable[..., Finished]) -> None:
    """Where user.max_user_namespaces is 0 the sentence names it."""
    done = run("true", most_namespaces=0)
    assert (done.returncode, done.stderr) == (
        125,
        "sysroot-fs: without root a user namespace is needed, and this machine forbids it: the "
        "setting user.max_user_namespaces is 0 (sysctl sets it)\n",
    )


def test_in_a_chroot(run: Callable[..., Finished]) -> None:
    """A user in a chroot gets no user namespace, and is told so."""
    done = run("true", chroot=True)
    assert done.returncode == 125
    assert "unshare(2) is not permitted, as in a chroot" in done.stderr


def test_the_device_is_closed(run: Callable[..., Finished]) -> None:
    """Where the user may not open /dev/fuse the sentence names it."""
    done = run("true", fuse=0o600)
    said = "sysroot-fs: /dev/fuse cannot be opened: permission denied\n"
    assert (done.returncode, done.stderr) == (125, said)


def test_root_without_any_of_the_rights(run: Callable[..., Finished]) -> None:
    """Root that has also lost CAP_SETFCAP is told that it is missing."""
    done = run("true", uid=0, gid=0, drop=[CAP_SYS_ADMIN, CAP_SETFCAP])
    assert (done.returncode, done.stderr) == (
        125,
        "sysroot-fs: for root without CAP_SYS_ADMIN a user namespace is needed, and this machine "
        "forbids it: root is let into one only with the capability CAP_SETFCAP\n",
    )


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns is 1",
        ),
    ],
)
def test_each_setting_is_named(tmp_path: Path, setting: str, value: str, said: str) -> None:
    """The setting that forbids user namespaces stands in the sentence."""
    file = tmp_path / setting
    file.parent.mkdir()
    file.write_text(f"{value}\n")
    refused = PermissionError(errno.EPERM, "")
    assert said in identity.why_forbidden(refused, UID, settings=str(tmp_path))


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "as many as user.max_user_namespaces allows"),
        (errno.EINVAL, "without CONFIG_USER_NS"),
        (errno.EPERM, "unshare(2) is not permitted"),
        (errno.EIO, "input/output error"),
    ],
)
def test_where_no_setting_forbids_it(tmp_path: Path, number: int, said: str) -> None:
    """Without such a setting the errno decides what is said."""
    refused = OSError(number, os.strerror(number))
    assert said in identity.why_forbidden(refused, UID, settings=str(tmp_path))


def test_the_helper_is_nobody_special(workplace: Path) -> None:
    """The user of these tests cannot do what they say it cannot: the refusals are not accidents."""
    make(workplace / "file", "secret\n", mode=0o600)
    done = call(("sh", "-c", f"id -u; cat {shlex.quote(str(workplace / 'file'))}"))
    assert done.stdout == f"{UID}\n"
