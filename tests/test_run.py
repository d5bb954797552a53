"""`sysroot-fs run` as root and without a terminal, end to end, in a real guest."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import tempfile
import termios
import uuid
from pathlib import Path
from typing import Final

import pytest

from tests.runs import RUN, Guest, Result, Word, run_guest, run_in_cell, state_of
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("door")

PASSED_ON: Final = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2")

COUNTER: Final = (
    "".join(f"trap 'echo {name}' {name}; " for name in PASSED_ON)
    + "echo ready $$; while :; do read -r -t 0.1 line && [ $line = end ] && exit 5; done"
)
"""Says every signal that it gets, until it reads `end`.

The shell may block in its read just as a signal arrives, and then says it when that returns only.
"""


def compiled(guest: Guest, source: str) -> str:
    """A static program made of C in the guest's /bin; its path there."""
    binary = guest.sysroot / "bin/compiled"
    subprocess.run(
        ["gcc", "-static", "-x", "c", "-", "-o", binary], input=source.encode(), check=True
    )
    return "/bin/compiled"


def no_process_of(mark: str) -> bool:
    """Whether no process but this one has *mark* in its environment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    return False
            except OSError:
                pass
    return True


# --- exit statuses ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 42, 125, 255])
def test_the_exit_status_is_the_commands(guest_root: Guest, status: int) -> None:
    """The command's exit status comes out, whatever it is, and nothing is said."""
    assert guest_root.sh(f"exit {status}") == Result(status, b"", b"")


@pytest.mark.parametrize("name", ["HUP", "INT", "KILL", "SEGV", "PIPE", "TERM", "USR2"])
def test_a_command_killed_by_a_signal_gives_128_and_more(guest_root: Guest, name: str) -> None:
    """A command that signal N kills gives 128 + N, as a shell says it."""
    killed = guest_root.sh(f"kill -{name} $$; sleep 9")
    assert killed == Result(128 + signal.Signals[f"SIG{name}"], b"", b"")


def test_many_runs_of_one_sysroot_do_not_disturb_each_other(guest_root: Guest) -> None:
    """Eight runs at a time, again and again, all get their own exit status.

    A namespace's number is used again at once: a run that looks for its own leftovers by the
    number of one that is gone kills somebody else's processes.
    """
    words = guest_root.words("/bin/sh", "-c", "exit 7")
    for _ in range(3):
        runs = [subprocess.Popen([*RUN, *words], stderr=subprocess.PIPE) for _ in range(8)]
        ended = [(run.communicate()[1], run.returncode) for run in runs]
        assert ended == [(b"", 7)] * 8


# --- its own failures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--nonsense", "--nonsense"),
        ("--non\nsense", r"--non\nsense"),
        (b"--nonsense\xff", r"--nonsense\xff"),
        ("--chdir=tmp", "--chdir takes an absolute path"),
        ("--chdir=/not/there", "the guest has no directory /not/there"),
        ("--chdir=/not\nthere\x1b[1m", r"the guest has no directory /not\nthere\x1b[1m"),
        ("--chdir=/bin/busybox", "not a directory"),
        ("--user=root", "--user"),
        ("--user=1000:", "--user"),
        ("--user=:1000", "--user"),
        ("--user=-1", "--user"),
        ("--user=4294967295", "--user"),
        ("--user=1000:1000:1000", "--user"),
        ("--env=NOVALUE", "--env"),
        ("--env==x", "--env"),
        ("--unset=", "--unset"),
        ("--unset=A=B", "--unset"),
        ("--hostname=" + "x" * 99, "host name"),
        ("--proc=some", "--proc"),
        ("--bind=/etc", "--bind takes SRC:DST"),
        ("--bind=/etc:/etc:rw", "--bind takes SRC:DST"),
        ("--bind=/etc:/tmp/..", "--bind takes an absolute path"),
        ("--bind=/etc:tmp", "--bind takes an absolute path"),
        ("--bind=/etc:/", "the guest's root"),
        ("--bind=/not/there:/x", "/not/there cannot be bound: no such file"),
        ("--bind=/dev/null:/tmp", "one is a directory and the other is not"),
        ("--bind=/proc:/bin/busybox", "one is a directory and the other is not"),
        ("--bind=/proc:/bin/busybox/x", "leads through a file"),
        ("--bind=/proc:/proc/none", "/proc/none"),
        ("--tmpfs=tmp", "--tmpfs"),
        ("--tmpfs=//", "the guest's root"),
        ("--tmpfs=/bin/busybox", "no tmpfs can be mounted at /bin/busybox: not a directory"),
        ("--map-root", "--map-root"),
        ("--host=/not/there", "host /not/there does not exist"),
        ("--host=/dev/null", "host /dev/null is not a directory"),
        ("--log=/not/there", "/not/there"),
        ("-ononsense", "nonsense"),
        ("-osubtype=" + "x" * 300, "cannot be mounted"),
    ],
)
def test_a_bad_option_is_one_sentence(guest_root: Guest, option: Word, said: str) -> None:
    """What is wrong with an option is said in one line, and the exit status is 125."""
    guest_root.run("true", options=[option]).refused(125, said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent", "does not exist"),
        ("file", "is not a directory"),
        ("file/x", "leads through a file"),
        ("circle", "cannot be read"),
        ("a\nb", r"a\nb does not exist"),
    ],
)
def test_a_bad_sysroot_is_one_sentence(workplace: Path, name: str, said: str) -> None:
    """A sysroot that is not there, or no directory, is named, with exit status 125."""
    (workplace / "file").touch()
    (workplace / "circle").symlink_to("circle")
    run_guest(workplace / name, "--", "true").refused(125, said)


def test_an_empty_sysroot_is_not_the_working_directory(guest_root: Guest) -> None:
    """`run "$unset" true` fails instead of taking the working directory for a guest."""
    run_guest("", "--", "true", cwd=guest_root.sysroot).refused(125, "sysroot is an empty path")


def test_a_missing_argument_is_one_sentence() -> None:
    """Without a sysroot, or without an option's value, the exit status is 125."""
    run_guest().refused(125, "SYSROOT")
    run_guest("--chdir").refused(125, "--chdir")


def test_without_dev_fuse_it_says_what_to_do(guest_root: Guest) -> None:
    """Where /dev/fuse is missing the sentence names it, with exit status 125."""
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"]
    guest_root.run("true", before=hide).refused(125, "/dev/fuse is missing", "modprobe fuse")


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("no-such-program", 127, "`no-such-program` was not found in the guest"),
        ("/no/such/program", 127, "`/no/such/program` was not found in the guest"),
        ("", 127, "the command is empty"),
        ("/etc/passwd", 126, "`/etc/passwd` may not be executed"),
        ("/etc", 126, "`/etc` is a directory"),
        (b"/odd\xff\n", 127, r"`/odd\xff\n` was not found"),
    ],
)
def test_a_command_that_cannot_start_is_one_sentence(
    guest_root: Guest, command: Word, status: int, said: str
) -> None:
    """The sentence about the program reaches stderr, with a shell's 127 or 126."""
    guest_root.run(command).refused(status, said)


def test_a_failure_is_silent_where_nobody_can_hear_it(workplace: Path) -> None:
    """With stderr closed or full the exit status is 125 still, and nothing goes to stdout."""
    for redirection in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        shell = ["sh", "-c", f'"$@" {redirection}', "sh"]
        assert run_guest(workplace / "absent", before=shell) == Result(125, b"", b""), redirection


# --- arguments and environment ----------------------------------------------------------------


def test_arguments_arrive_as_they_are(guest_root: Guest) -> None:
    """Arguments that are empty, not UTF-8 or look like options reach the command byte for byte."""
    words = [b"", b"\xff\xfe", b"--", b"--help", b"-o", b"two words\n", b"--", b""]
    said = guest_root.run("/bin/printf", "[%s]", *words)
    assert said.out == b"".join(b"[%s]" % word for word in words)


def test_what_follows_the_sysroot_is_the_commands(guest_root: Guest) -> None:
    """Without -- too: options after SYSROOT are the command's, and only the first -- is taken."""
    words: list[Word] = ["--host", guest_root.host, guest_root.sysroot]
    assert run_guest(*words, "printf", "%s.", "--pid", "--", "-x").printed() == "--pid.--.-x."
    run_guest(*words, "--", "--", "x").refused(127, "`--` was not found in the guest")


def test_without_a_command_it_is_a_shell(guest_root: Guest) -> None:
    """No command means the guest's /bin/sh, which reads its standard input."""
    words: list[Word] = ["--host", guest_root.host, guest_root.sysroot]
    assert run_guest(*words, stdin=b"echo $0; exit 3\n") == Result(3, b"/bin/sh\n", b"")
    assert run_guest(*words, "--", stdin=b"exit 4\n").status == 4


def test_the_environment_is_the_callers(guest_root: Guest) -> None:
    """The command gets the caller's variables and no others, bytes that are not UTF-8 included."""
    env = {"PATH": "/bin", "ODD": "a\udcff\nb", "EMPTY": ""}
    said = guest_root.run("env", "-0", env=env)
    assert sorted(said.out.split(b"\0")[:-1]) == [b"EMPTY=", b"ODD=a\xff\nb", b"PATH=/bin"]


def test_a_megabyte_of_environment_arrives(guest_root: Guest) -> None:
    """Ten variables of 100000 bytes are handed on whole."""
    env = {"PATH": "/bin"} | {f"BIG{i}": str(i) * 100_000 for i in range(10)}
    said = guest_root.run("env", env=env)
    assert sorted(said.out.decode().splitlines()) == sorted(f"{k}={v}" for k, v in env.items())


def test_variables_are_set_and_taken_away(guest_root: Guest) -> None:
    """--env sets, --unset takes away, and the later --env of a name wins."""
    options = ["--env", "A=1", "--env", "A=x=y", "--env", "NEW=", "--unset", "B", "--unset", "NONE"]
    env = {"PATH": "/bin", "A": "0", "B": "0", "C": "0"}
    said = guest_root.run("env", options=options, env=env).printed()
    assert sorted(said.splitlines()) == ["A=x=y", "C=0", "NEW=", "PATH=/bin"]


def test_a_clean_environment_has_path_home_and_term(guest_root: Guest) -> None:
    """--clean-env leaves TERM, sets PATH and the user's HOME from the guest, and adds --env."""
    env = {"PATH": "/nowhere", "TERM": "vt52", "LC_ALL": "C", "HOME": "/x", "PWD": "/"}
    options = ["--clean-env", "--env", "A=1", "--user", "1000"]
    said = guest_root.run("/bin/env", options=options, env=env).printed().splitlines()
    path = next(line for line in said if line.startswith("PATH="))
    assert sorted(said) == ["A=1", "HOME=/tmp", path, "TERM=vt52"]
    assert {"/bin", "/usr/bin"} <= set(path.removeprefix("PATH=").split(":"))


def test_path_is_made_only_where_there_is_none(guest_root: Guest) -> None:
    """Without PATH the guest's programs are found; an empty PATH stays empty, and finds none."""
    assert "/usr/bin" in guest_root.run("sh", "-c", "echo $PATH", env={}).printed()
    assert guest_root.sh('echo "[$PATH]"', env={"PATH": ""}).printed() == "[]\n"
    guest_root.run("sh", env={"PATH": ""}).refused(127, "`sh` was not found")


# --- what is handed on ------------------------------------------------------------------------


def test_the_working_directory_is_kept_where_the_guest_has_it(guest: Guest) -> None:
    """The command starts where the caller is, by the guest's eyes, and PWD says so."""
    here = guest.host.parent / "here"
    here.mkdir()
    (guest.host / str(here)[1:]).mkdir(parents=True)
    (guest.host / str(here)[1:] / "seen").touch()
    env = {**os.environ, "PWD": "/wrong"}
    said = guest.run("/bin/busybox", "sh", "-c", "/bin/pwd; printenv PWD; ls", cwd=here, env=env)
    assert said.printed() == f"{here}\n{here}\nseen\n"


def test_the_working_directory_is_the_root_where_the_guest_has_none(guest: Guest) -> None:
    """Absent in the guest, removed, or closed to the user: the command starts in /, as PWD says."""
    base = guest.host.parent
    for name in ("absent", "gone", "shut"):
        (base / name).mkdir()
    (guest.host / str(base)[1:] / "shut").mkdir(parents=True)
    (guest.host / str(base)[1:] / "shut").chmod(0o700)
    remove = ["sh", "-c", f'rmdir {base}/gone; exec "$@"', "sh"]
    env = {**os.environ, "PWD": "/wrong"}
    command = ("/bin/busybox", "sh", "-c", "/bin/pwd; printenv PWD")
    for where, before, options in (
        ("absent", [], []),
        ("gone", remove, []),
        ("shut", [], ["--user", "1000"]),
    ):
        said = guest.run(*command, cwd=base / where, before=before, options=options, env=env)
        assert said.printed() == "/\n/\n", where


def test_in_a_removed_directory_a_relative_sysroot_is_absent(guest: Guest) -> None:
    """A relative path in a working directory that is gone is one sentence, not a bug."""
    gone = guest.host.parent / "gone"
    gone.mkdir()
    remove = ["sh", "-c", f'rmdir {gone}; exec "$@"', "sh"]
    done = run_guest("some/guest", "--", "true", cwd=gone, before=remove)
    done.refused(125, "some/guest does not exist")


@pytest.mark.parametrize("source", [".", "some/where"])
def test_in_a_removed_directory_a_relative_source_is_absent(guest: Guest, source: str) -> None:
    """It is not bound from wherever the root is made."""
    gone = guest.host.parent / "gone"
    gone.mkdir()
    remove = ["sh", "-c", f'rmdir {gone}; exec "$@"', "sh"]
    done = guest.run("true", options=[f"--bind={source}:/mnt"], cwd=gone, before=remove)
    done.refused(125, f"{source} cannot be bound: no such file or directory")


def test_without_proc_it_says_so(guest: Guest) -> None:
    """A machine, or a chroot, where /proc is not mounted is one sentence."""
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs x /proc; exec "$@"', "sh"]
    guest.run("true", before=hidden).refused(125, "run needs /proc, and none is mounted here")


def test_a_proc_of_another_namespace_is_refused(guest: Guest) -> None:
    """By it others would be taken for the run's processes, and ended with it."""
    inner = 'sleep 60 & "$@"; status=$?; kill $! && exit $status; exit 99'
    before = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", inner, "sh"]
    guest.run("true", before=before).refused(125, "run needs /proc", "another namespace")


def test_chdir_says_where_to_start(guest_root: Guest) -> None:
    """--chdir is the working directory, and PWD even where there was none."""
    said = guest_root.run("sh", "-c", "/bin/pwd; printenv PWD", options=["--chdir", "/usr"], env={})
    assert said.printed() == "/usr\n/usr\n"


def test_limits_priority_and_mask_are_the_callers(guest_root: Guest) -> None:
    """umask, nice value and resource limits are handed on; the soft limit of files too."""
    script = 'umask 027; ulimit -Sn 123; ulimit -Hn 500; ulimit -c 0; exec nice -n 7 "$@"'
    said = guest_root.sh(
        "umask; ulimit -Sn; ulimit -Hn; ulimit -c; nice", before=["bash", "-c", script, "sh"]
    )
    assert said.printed().split() == ["0027", "123", "500", "0", str(min(os.nice(0) + 7, 19))]


@pytest.mark.parametrize("descriptors", range(13, 20))
def test_no_descriptors_left(guest_root: Guest, descriptors: int) -> None:
    """Wherever the limit of open files is met, the sentence says that it is one."""
    before = ["bash", "-c", f'ulimit -n {descriptors}; exec "$@"', "bash"]
    result = guest_root.run("/bin/true", before=before)
    result.refused(result.status, "too many open files")
    assert result.status in (125, 126)


def _signal_set(said: str, field: str) -> set[signal.Signals]:
    found = re.search(rf"^{field}:\s*(\w+)$", said, re.M)
    assert found
    return {number for number in signal.valid_signals() if int(found[1], 16) >> (number - 1) & 1}


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_ignored_and_blocked_signals_are_the_callers(guest_root: Guest, option: str) -> None:
    """What the caller ignores (nohup) or blocks is so for the command, and nothing else is."""
    before = ["env", "--default-signal", "--ignore-signal=HUP", "--block-signal=USR1,TERM,CHLD"]
    said = guest_root.run("cat", "/proc/self/status", options=[option], before=before).printed()
    assert _signal_set(said, "SigIgn") == {signal.SIGHUP}
    assert _signal_set(said, "SigBlk") == {signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD}


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_ten_megabytes_pass_through_untouched(guest_root: Guest, option: str) -> None:
    """Standard input goes to standard output byte for byte."""
    data = os.urandom(1 << 20) * 10
    done = guest_root.run("cat", options=[option], stdin=data)
    assert (done.status, done.err) == (0, b"") and done.out == data


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_descriptors_are_closed_for_the_command(
    guest: Guest, option: str, closed: tuple[int, ...]
) -> None:
    """What the caller has closed of 0, 1 and 2 the command finds closed, and the rest open."""
    shell = ["sh", "-c", f'exec "$@" {" ".join(f"{fd}>&-" for fd in closed)}', "sh"]
    script = "for fd in 0 1 2; do [ -e /proc/self/fd/$fd ] || printf $fd >>/tmp/seen; done; exit 6"
    assert guest.sh(script, option, before=shell) == Result(6, b"", b"")
    assert (guest.sysroot / "tmp/seen").read_text() == "".join(map(str, closed))


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_inherited_descriptors_are_handed_on_and_no_others(guest_root: Guest, option: str) -> None:
    """A file, a directory and a pipe past 2 arrive under their numbers; none of ours does."""
    reader, writer = os.pipe()
    os.write(writer, b"token")
    before = ["bash", "-c", f'exec 3</dev/null 7</etc 100<&{reader} {reader}<&-; exec "$@"', "sh"]
    seen = (
        "ls /proc/$$/fd; readlink /proc/self/fd/3 /proc/self/fd/7; head -c 5 <&100;"
        " [ -d /proc/self/fd/7 ] && echo directory"
    )
    said = guest_root.sh(seen, option, before=before, pass_fds=[reader]).printed()
    os.close(reader)
    os.close(writer)
    assert said == "0\n1\n100\n2\n3\n7\n/dev/null\n/etc\ntokendirectory\n"


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_when_the_command_closes_its_output_the_reader_sees_the_end(
    guest_root: Guest, option: str
) -> None:
    """End of file arrives while the command goes on: nobody else holds what it has closed."""
    with guest_root.start("echo first; exec >&-; read line; exit 3", option) as run:
        assert run.stdout and run.stdin
        assert run.stdout.read() == b"first\n"
        assert run.poll() is None
        run.stdin.write(b"go on\n")
        assert run.wait() == 3


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_when_the_command_closes_its_input_the_writer_is_told(
    guest_root: Guest, option: str
) -> None:
    """A pipe that the command has closed is broken while the command goes on."""
    with guest_root.start("exec <&-; echo closed; sleep 60", option) as run:
        assert run.stdout and run.stdin
        assert run.stdout.readline() == b"closed\n"
        with pytest.raises(BrokenPipeError):
            run.stdin.write(b"nobody reads this")
        assert run.poll() is None
        run.terminate()
        assert run.wait() == 143


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_a_reader_that_goes_away_kills_the_writer(guest_root: Guest, option: str) -> None:
    """`run .. yes | head -1` ends, with 141: the command has SIGPIPE as a shell gives it."""
    with guest_root.start("exec yes", option) as run:
        assert run.stdout
        assert run.stdout.readline() == b"y\n"
        run.stdout.close()
        assert run.wait() == 141


# --- signals ----------------------------------------------------------------------------------


def _said_by_counter(run: subprocess.Popen[bytes], send: int | None = None) -> list[str]:
    """What COUNTER says after *send* was written to its input."""
    assert run.stdout
    if run.stdin:
        run.stdin.write(b"end\n")
    elif send is not None:
        os.write(send, b"end\n")
    said = run.stdout.read().decode().split()
    assert run.wait() == 5
    return said


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
@pytest.mark.parametrize("whom", ["runner", "group"])
def test_signals_are_passed_on_once(guest_root: Guest, option: str, whom: str) -> None:
    """A signal to the runner, or to its whole process group, reaches the command exactly once."""
    with guest_root.start(COUNTER, option) as run:
        assert run.stdout
        run.stdout.readline()
        for name in PASSED_ON:
            (os.kill if whom == "runner" else os.killpg)(run.pid, signal.Signals[f"SIG{name}"])
            assert run.stdout.readline().decode() == f"{name}\n"
        assert _said_by_counter(run) == []


@pytest.mark.parametrize("option", ["--no-tty", "--pid"])
def test_a_signal_that_comes_too_late(guest_root: Guest, option: str) -> None:
    """The status is the command's, however late the runner hears of a signal."""
    with guest_root.start("trap '' HUP; echo ready; read line; exit 5", option) as run:
        assert run.stdin and run.stdout
        run.stdout.readline()
        run.stdin.write(b"end\n")
        while run.poll() is None:
            run.send_signal(signal.SIGHUP)
        assert run.returncode == 5


def test_interrupt_at_a_terminal_is_not_doubled(guest_root: Guest) -> None:
    """With standard input a terminal and output a pipe, ^C and ^\\ reach the command once each."""
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    with guest_root.start(
        COUNTER, before=["setsid", "--ctty"], stdin=slave, process_group=None
    ) as run:
        os.close(slave)
        assert run.stdout
        run.stdout.readline()
        for key, name in ((b"\x03", "INT"), (b"\x1c", "QUIT"), (b"\x03", "INT")):
            os.write(master, key)
            assert run.stdout.readline().decode() == f"{name}\n"
        assert _said_by_counter(run, master) == []
    os.close(master)


def test_a_stopped_group_goes_on(guest_root: Guest) -> None:
    """The process group can be stopped and continued, and the command ends as it would have."""
    with guest_root.start(COUNTER) as run:
        assert run.stdout
        program = int(run.stdout.readline().split()[1])
        os.killpg(run.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(run.pid) == state_of(program) == "T")
        os.killpg(run.pid, signal.SIGCONT)
        run.send_signal(signal.SIGUSR1)
        assert run.stdout.readline() == b"USR1\n"
        assert _said_by_counter(run) == []


def test_a_stopped_command_can_be_ended(guest_root: Guest) -> None:
    """A command that has stopped itself does not end the run, and ends when it is continued."""
    with guest_root.start("echo $$; kill -STOP $$; exit 8") as run:
        assert run.stdout
        program = int(run.stdout.readline())
        wait_until(lambda: state_of(program) == "T")
        assert run.poll() is None
        os.kill(program, signal.SIGCONT)
        assert run.wait() == 8


def _hang_the_start(guest: Guest) -> None:
    """Make --user wait for ever: it reads the guest's /etc/passwd, now a fifo, just before exec."""
    (guest.sysroot / "etc/passwd").unlink()
    os.mkfifo(guest.sysroot / "etc/passwd")


def _is_starting(pid: int) -> bool:
    """Whether the runner has its two processes and the second has a child, the command to be."""
    try:
        children = _children(pid)
        return len(children) == 2 and bool(_children(children[1]))
    except FileNotFoundError:
        return False


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _command_and_monitor(pid: int) -> tuple[int, int]:
    """Of the run that *pid* has started; the command is still to be."""
    _server, monitor = _children(pid)
    (program,) = _children(monitor)
    return program, monitor


def _written(fifo: Path) -> bool:
    """Whether somebody reads there; who does has an empty file."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO
        return False
    return True


@pytest.mark.parametrize("name", ["INT", "TERM"])
def test_a_signal_before_the_command_runs_ends_the_run(guest: Guest, name: str) -> None:
    """During the start a signal ends everything: 128 + N, nothing said, no process left."""
    _hang_the_start(guest)
    mark = f"RUN_MARK={uuid.uuid4()}"
    env = {**os.environ, "RUN_MARK": mark[9:]}
    with guest.start("echo it runs", "--user", "1000", env=env) as run:
        wait_until(lambda: _is_starting(run.pid))
        number = signal.Signals[f"SIG{name}"]
        run.send_signal(number)
        assert (run.wait(), run.stdout and run.stdout.read()) == (128 + number, b"")
        assert run.stderr and run.stderr.read() == b""
        assert no_process_of(mark)


def test_a_signal_right_after_the_start_is_passed_on(guest: Guest) -> None:
    """Who has seen the command run and signals it reaches it, though the monitor is behind."""
    _hang_the_start(guest)
    with guest.start(COUNTER, "--user", "1000") as run:
        wait_until(lambda: _is_starting(run.pid))
        program, monitor = _command_and_monitor(run.pid)
        os.kill(monitor, signal.SIGSTOP)
        wait_until(lambda: state_of(monitor) == "T")
        # A fifo has its two ends in one mount: the guest's.
        wait_until(lambda: _written(Path(f"/proc/{program}/root/etc/passwd")))
        assert run.stdout
        assert run.stdout.readline() == f"ready {program}\n".encode()
        run.send_signal(signal.SIGINT)
        run.send_signal(signal.SIGUSR1)
        assert {run.stdout.readline(), run.stdout.readline()} == {b"INT\n", b"USR1\n"}
        assert _said_by_counter(run) == []


def test_an_ignored_signal_does_not_end_the_start(guest: Guest) -> None:
    """Under nohup a hangup during the start is nothing; a signal that is not ignored ends it."""
    _hang_the_start(guest)
    ignore = ["env", "--ignore-signal=HUP"]
    with guest.start("echo it runs", "--user", "1000", before=ignore) as run:
        wait_until(lambda: _is_starting(run.pid))
        run.send_signal(signal.SIGHUP)
        run.send_signal(signal.SIGUSR1)
        assert run.wait() == 128 + signal.SIGUSR1


def test_a_signal_at_any_moment_ends_the_run(guest_root: Guest, workplace: Path) -> None:
    """SIGTERM at ten moments of the start always ends the run by it, and silently."""
    for moment in range(10):
        with guest_root.start("sleep 60") as run:
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(moment * 0.04)
            run.terminate()
            assert run.wait() in (143, -signal.SIGTERM)
            assert run.stderr and run.stderr.read() == b""


# --- nothing is left --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--pid"]])
def test_a_run_leaves_nothing_behind(guest: Guest, workplace: Path, options: list[str]) -> None:
    """No mount, process (not even a zombie), temporary file, or name in sysroot or host is left."""
    before = sorted(guest.sysroot.rglob("*"))
    options = [*options, "--bind", f"{workplace}:/deep/down/here", "--tmpfs", "/other"]
    result, left = run_in_cell(guest, "exit 9", *options, work=workplace)
    assert (result, left) == (Result(9, b"", b""), "")
    assert sorted(guest.sysroot.rglob("*")) == before
    assert list(guest.host.iterdir()) == []


LEFTOVERS: Final = {
    "child": "sleep 600 &",
    "stopped": "sleep 600 & kill -STOP $!",
    "stubborn": "sh -c \"trap '' TERM HUP; while :; do sleep 600; done\" & read x",
    "daemon": "setsid sh -c 'sleep 600 & sleep 600' >/dev/null 2>&1 </dev/null &",
    "namespace": "unshare -m sleep 600 & echo; read x",
    "moved": "trap 'exit 9' USR1;"
    " unshare -m sh -c 'mount -t tmpfs t /tmp; cd /tmp; mkdir bin lib o;"
    " cp /bin/busybox bin; cp /lib/ld-musl* lib; pivot_root . o; /bin/busybox umount -l /o;"
    " kill -USR1 $0; exec /bin/busybox sleep 600' $$ & while :; do sleep 0.05; done",
    "crowd": "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 600 & sleep 600 &) & done",
}


@pytest.mark.parametrize("kind", LEFTOVERS)
@pytest.mark.parametrize("options", [[], ["--pid"]])
def test_what_the_command_leaves_is_ended(
    guest: Guest, workplace: Path, kind: str, options: list[str]
) -> None:
    """Background processes end with the run, however they try to stay, and no zombie is left."""
    result, left = run_in_cell(guest, f"{LEFTOVERS[kind]}\nexit 9", *options, work=workplace)
    assert (result.status, result.err, left) == (9, b"", "")


@pytest.mark.parametrize("options", [[], ["--pid"]])
def test_leftovers_are_asked_before_they_are_killed(guest: Guest, options: list[str]) -> None:
    """A background process gets SIGTERM and the time to clean up before the run ends."""
    script = (
        "mkfifo /tmp/up; (trap 'echo cleaned >/tmp/said; exit' TERM; echo >/tmp/up;"
        " while :; do sleep 0.1; done) & read ready </tmp/up; exit 9"
    )
    assert guest.sh(script, *options, stdin=subprocess.DEVNULL).status == 9
    assert (guest.sysroot / "tmp/said").read_text() == "cleaned\n"


@pytest.mark.parametrize("options", [[], ["--pid"]])
@pytest.mark.parametrize("signal_name", ["KILL", "STOP"])
def test_a_killed_runner_leaves_nothing_behind(
    guest: Guest, workplace: Path, options: list[str], signal_name: str
) -> None:
    """`kill -9` of the runner by its own command ends the command, the mount and the server."""
    if signal_name == "STOP":
        # Stopped first, so that it has no chance to do anything.
        script = "kill -STOP $RUNNER; kill -KILL $RUNNER; sleep 600"
    else:
        script = "kill -KILL $RUNNER; sleep 600"
    # --pid hides the runner's number: it is told by who starts it.
    tell = ["sh", "-c", 'export RUNNER=$$; exec "$@"', "sh"]
    if options:
        script = "sleep 600"
        tell = ["sh", "-c", 'pid=$$; (sleep 1; kill -KILL $pid) & exec "$@"', "sh"]
    result, left = run_in_cell(guest, script, *options, work=workplace, patient=True, before=tell)
    assert (result.status, left) == (137, "")


# --- processes of its own ---------------------------------------------------------------------


def test_pid_shows_only_the_guests_processes(guest_root: Guest) -> None:
    """With --pid /proc is new: process 1, the command and what it has started, and no others."""
    said = guest_root.sh("echo $$; cd /proc; for p in [0-9]*; do echo $p; done", "--pid").printed()
    assert said.split() == ["2", "1", "2"]


def test_pid_reaps_orphans(guest_root: Guest) -> None:
    """Process 1 takes over what has lost its parent, and leaves no zombies."""
    script = (
        "pid=$(sh -c 'sleep 0.2 >/dev/null & echo $!'); grep PPid /proc/$pid/status;"
        " while [ -e /proc/$pid ]; do sleep 0.05; done; echo gone"
    )
    assert guest_root.sh(script, "--pid").printed().split() == ["PPid:", "1", "gone"]


def test_pid_hands_on_how_the_command_ended(guest_root: Guest) -> None:
    """With --pid exit statuses, signals and refusals come out as without it."""
    assert guest_root.sh("exit 77", "--pid").status == 77
    assert guest_root.sh("kill -SEGV $$", "--pid").status == 139
    guest_root.run("nothing", options=["--pid"]).refused(127, "`nothing` was not found")
    guest_root.run("true", options=["--pid", "--chdir=/no"]).refused(125, "no directory /no")


def test_the_host_name_is_the_guests_own(guest_root: Guest) -> None:
    """--hostname is what the guest sees, and the machine's stays."""
    before = os.uname().nodename
    script = "hostname; hostname changed; hostname"
    said = guest_root.sh(script, "--hostname", "guest-name").printed()
    assert said.split() == ["guest-name", "changed"]
    assert os.uname().nodename == before


# --- mounts -----------------------------------------------------------------------------------


@pytest.fixture
def source(workplace: Path) -> Path:
    """A host directory to bind, with a file in it."""
    made = workplace / "source"
    made.mkdir()
    (made / "file").write_text("bound\n")
    return made


@pytest.mark.parametrize(
    "target",
    [
        b"/tmp", b"/mnt", b"/deep/er/and/deeper", b"/usr/bin/new", b"/with blank/\xff\n\\",
        b"/dev/shm",
    ],
)  # fmt: skip
def test_a_directory_is_bound(guest: Guest, source: Path, target: bytes) -> None:
    """--bind shows a directory, to read and to write, where the guest has one or has not."""
    option = b"--bind=" + os.fsencode(source) + b":" + target.replace(b"\\", b"\\\\")
    said = guest.run(
        "sh", "-c", 'cd "$1" && cat file && echo new >made', "sh", target, options=[option]
    )
    assert said.printed() == "bound\n"
    assert (source / "made").read_text() == "new\n"


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc/new", "/deep/er/file", "/dev/null"])
def test_a_file_is_bound(guest: Guest, source: Path, target: str) -> None:
    """--bind shows a file where the guest has one or has not."""
    option = f"--bind={source}/file:{target}"
    assert guest.sh(f"cat {target}; echo more >>{target}", option).printed() == "bound\n"
    assert (source / "file").read_text() == "bound\nmore\n"


def test_a_file_is_bound_where_a_link_leads_to_nothing(guest: Guest) -> None:
    """As /etc/resolv.conf of many roots does, whose /run is filled at boot."""
    (guest.sysroot / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    file = guest.host / "given"
    file.write_text("nameserver")
    options = ["--bind", f"{file}:/etc/resolv.conf"]
    assert guest.sh("cat /etc/resolv.conf; readlink /etc/resolv.conf", *options).printed() == (
        "nameserver../run/systemd/resolve/stub-resolv.conf\n"
    )
    assert not (guest.sysroot / "run").exists()


@pytest.mark.parametrize("link", ["/etc/passwd", "passwd", "../etc/chain"])
def test_a_file_is_bound_where_a_link_leads(guest: Guest, source: Path, link: str) -> None:
    """As mount(8) does it: over what the link leads to, as /etc/resolv.conf often is one."""
    (guest.sysroot / "etc/chain").symlink_to("passwd")
    (guest.sysroot / "etc/link").symlink_to(link)
    option = f"--bind={source}/file:/etc/link"
    assert guest.sh("cat /etc/link /etc/passwd", option).printed() == "bound\nbound\n"
    wrong = guest.sh("true", f"--bind={source}/file:/etc/link/below")
    wrong.refused(125, "the way there leads through a file")


def test_what_is_bound_below_a_tmpfs_needs_no_place(guest: Guest, source: Path) -> None:
    """In a --tmpfs and in a fresh /dev the place is made, open to all, whatever the umask."""
    options = [
        "--tmpfs=/tmp", f"--bind={source}:/tmp/deep/er", f"--bind={source}/file:/tmp/file",
        "--tmpfs=/tmp/more/mem", "--dev=fresh", f"--bind={source}/file:/dev/bus/file",
    ]  # fmt: skip
    script = "cat /tmp/deep/er/file /tmp/file /dev/bus/file; stat -c %a /tmp/deep /tmp/more/mem"
    said = guest.sh(script, *options, umask=0o077).printed()
    assert said.split() == ["bound"] * 3 + ["755", "1777"]
    assert os.listdir(source) == ["file"] and not os.path.lexists("/dev/bus/file")
    # What is the host's is not changed for it, also above a tmpfs.
    below = ["--tmpfs=/mnt", f"--bind={source}:/mnt/a", f"--bind={source}:/mnt/a/b"]
    guest.sh("true", *below).refused(125, "/mnt/a/b: no such file")
    assert os.listdir(source) == ["file"]


def test_what_is_bound_over_nothing_leaves_no_trace(guest: Guest, source: Path) -> None:
    """A mountpoint that the guest lacks is there for the run only, with the way to it."""
    option = f"--bind={source}:/deep/down/here"
    assert guest.sh("ls -A /deep /deep/down", option).status == 0
    assert not (guest.sysroot / "deep").exists() and not (guest.host / "deep").exists()
    assert guest.sh("ls /deep").status != 0


def test_what_is_bound_over_nothing_is_there_for_every_user(guest: Guest, source: Path) -> None:
    """The way to it belongs to root and is open to all."""
    option = f"--bind={source}:/deep/down/here"
    said = guest.sh("ls -d /deep/down; cat /deep/down/here/file", option, "--user=1000").printed()
    assert said == "/deep/down\nbound\n"


def test_a_read_only_bind_cannot_be_written(guest: Guest, source: Path) -> None:
    """:ro makes the bind and the mounts below it read-only, and nothing else."""
    (source / "below").mkdir()
    below = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs x {source}/below; exec "$@"', "sh"]
    script = "cat /mnt/file; touch /mnt/a /mnt/below/a || touch /tmp/a && echo there"
    said = guest.sh(script, f"--bind={source}:/mnt:ro", before=below)
    assert said.out == b"bound\nthere\n" and said.err.count(b"Read-only file system") == 2
    assert sorted(os.listdir(source)) == ["below", "file"]


def test_colons_of_a_bind_are_escaped(guest: Guest, workplace: Path) -> None:
    """A backslash makes a colon part of the source or of the target."""
    (workplace / "a:b").mkdir()
    (workplace / "a:b/file").touch()
    option = f"--bind={workplace}/a\\:b:/mnt\\:ro"
    assert guest.sh("ls /mnt:ro", option).printed() == "file\n"


def test_mounts_lie_over_each_other_in_the_order_given(guest: Guest, source: Path) -> None:
    """The later of --bind and --tmpfs covers the earlier, and one may lie below another."""
    (source / "below").mkdir()
    bind, tmpfs = f"--bind={source}:/mnt", "--tmpfs=/mnt"
    assert guest.sh("ls /mnt", tmpfs, bind).printed() == "below\nfile\n"
    assert guest.sh("ls /mnt", bind, tmpfs).printed() == ""
    below = f"--bind={guest.sysroot}/etc:/mnt/below"
    assert guest.sh("ls /mnt/below", bind, below).printed() == "group\npasswd\n"
    assert guest.sh("cat /mnt/below/file", bind, f"--bind={source}:/mnt/below").status == 0
    guest.sh("true", bind, f"--bind={source}:/mnt/absent").refused(125, "/mnt/absent")


@pytest.mark.parametrize("link", ["/outside", "../../../outside", "/proc/1/root/outside"])
def test_a_bind_through_a_link_stays_in_the_guest(guest: Guest, source: Path, link: str) -> None:
    """A guest's link on the way to the target leads where it leads in the guest, or nowhere."""
    (guest.sysroot / "outside").mkdir()
    (guest.sysroot / "link").symlink_to(link)
    done = guest.sh("ls /outside", f"--bind={source}:/link")
    if link.startswith("/proc"):
        done.refused(125, "cannot be bound at /link")
    else:
        assert done.printed() == "file\n"


def test_a_tmpfs_is_empty_and_for_everyone(guest: Guest) -> None:
    """--tmpfs is an empty directory with mode 1777, and what is put there reaches no disk."""
    script = "ls -A /root; stat -c %a:%T:%n -f /root >/dev/null; stat -c %a /root; echo >/root/new"
    assert guest.sh(script, "--tmpfs=/root").printed() == "1777\n"
    assert list((guest.sysroot / "root").iterdir()) == []


@pytest.mark.parametrize("options", [["--ro"], ["-o", "ro"]])
def test_a_read_only_guest_cannot_be_written(guest: Guest, options: list[str]) -> None:
    """With --ro neither guest nor host can be changed; what is mounted on top can."""
    (guest.host / "hostly").mkdir()
    script = "touch /made /tmp/made /hostly/made || touch /mnt/made && echo written"
    said = guest.sh(script, *options, "--tmpfs=/mnt")
    assert said.out == b"written\n" and said.err.count(b"Read-only file system") == 3
    assert not (guest.sysroot / "made").exists() and not (guest.host / "hostly/made").exists()


def test_proc_dev_and_sys_are_the_hosts(guest_root: Guest) -> None:
    """By default /proc, /dev and /sys are the machine's own, with what is mounted below them."""
    script = "cat /proc/sys/kernel/random/boot_id; stat -c %d:%i /dev /dev/pts /sys/kernel"
    said = guest_root.sh(script).printed().split()
    assert said[0] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = [os.stat(place) for place in ("/dev", "/dev/pts", "/sys/kernel")]
    assert said[1:] == [f"{place.st_dev}:{place.st_ino}" for place in found]


def test_proc_dev_and_sys_can_be_left_out(guest_root: Guest) -> None:
    """With `none` each is an empty directory, and a command runs all the same."""
    said = guest_root.sh("ls -A /proc /dev /sys", "--proc=none", "--dev=none", "--sys=none")
    assert said.printed().split() == ["/dev:", "/proc:", "/sys:"]


def test_proc_and_sys_can_be_new(guest_root: Guest) -> None:
    """With `fresh` they are mounts of the guest's own, without what the host has mounted below."""
    script = "stat -c %d /proc /sys; grep -c ' /proc\\| /sys' /proc/self/mounts"
    said = guest_root.sh(script, "--proc=fresh", "--sys=fresh").printed().split()
    assert said[0] != str(os.stat("/proc").st_dev)
    assert said[2] == "2"


def test_a_new_dev_has_what_programs_need_and_no_more(guest_root: Guest) -> None:
    """A fresh /dev: null, zero, full and random work, shm is a place for all, pts is its own."""
    script = """
        cd /dev; echo *
        head -c 3 zero | od -An -tx1; head -c 9 urandom | wc -c; cat null
        echo gone >null; echo full >full || echo refused
        ls pts; stat -c %a shm pts/ptmx; : >shm/file && : <>ptmx && echo opened
        echo through | cat stdin; echo out >stdout; ls -d fd/1"""
    said = guest_root.sh(f"{{ {script}\n}} 2>/dev/null", "--dev=fresh")
    assert said.out.decode().split("\n")[:-1] == [
        "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero",
        " 00 00 00", "9", "refused", "ptmx", "1777", "666", "opened", "through", "out", "fd/1",
    ]  # fmt: skip


def _root_line(guest: Guest, *options: str) -> list[str]:
    """Source, type and options of / as the guest's /proc/mounts has them."""
    for line in guest.sh("cat /proc/mounts", *options).printed().splitlines():
        source, where, kind, settings, *_ = line.split(" ")
        if where == "/":
            return [source, kind, *settings.split(",")]
    raise AssertionError("no root")


def test_mount_options_show_in_the_guest(guest_root: Guest) -> None:
    """nosuid, nodev, noexec, noatime, ro, fsname and subtype are the root mount's."""
    plain = _root_line(guest_root)
    assert plain[:2] == [str(guest_root.sysroot), "fuse.sysroot"]
    assert not {"nosuid", "nodev", "noexec", "noatime", "ro"} & set(plain)
    said = _root_line(guest_root, "-o", "nosuid,nodev,noatime,ro,fsname=my name,subtype=mine")
    assert said[:2] == ["my\\040name", "fuse.mine"]
    assert {"nosuid", "nodev", "noatime", "ro"} <= set(said)
    guest_root.sh("true", "-o", "noexec").refused(126, "noexec")


# --- users ------------------------------------------------------------------------------------


def test_a_setuid_program_gains_its_owners_rights_unless_told(guest: Guest) -> None:
    """--user 1000 gets euid 0 of a program of root's with the bit, and with -o nosuid does not."""
    program = guest.sysroot / "usr/bin/id"
    program.chmod(0o4755)
    assert guest.run("/usr/bin/id", "-u", options=["--user=1000"]).printed() == "0\n"
    said = guest.run("/usr/bin/id", "-u", options=["--user=1000", "-onosuid"])
    assert said.printed() == "1000\n"


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("1000", "1000 1000 1000 7 8"),
        ("1000:5", "1000 5 5"),
        ("4242", "4242 4242 4242"),
        ("0", "0 0 0 8"),
        ("0:0", "0 0 0"),
    ],
)
def test_user_and_groups_are_the_guests(guest: Guest, user: str, ids: str) -> None:
    """--user takes group and groups from the guest's files unless the group is given."""
    group = guest.sysroot / "etc/group"
    group.write_text(group.read_text() + "seven:x:7:guest\neight:x:8:root,guest\nbad:x:y:guest\n")
    said = guest.sh("id -u; id -g; id -G", f"--user={user}").printed()
    assert said.split() == ids.split()


def test_numbers_that_are_no_groups_are_passed_over(guest: Guest) -> None:
    """What the kernel cannot take for a group is nobody's; too many are one sentence."""
    numbers = ["9", "4294967295", "99999999999999999999", "0" * 5000 + "8", "-3", "7"]
    lines = [f"g{i}:x:{number}:guest\n" for i, number in enumerate(numbers)]
    group, passwd = guest.sysroot / "etc/group", guest.sysroot / "etc/passwd"
    group.write_text("".join(lines))
    assert set(guest.sh("id -G", "--user=1000").printed().split()) == {"1000", "9", "7"}
    group.write_text("".join(f"g{i}:x:{i}:guest\n" for i in range(2, 65540)))
    guest.run("true", options=["--user=1000"]).refused(125, "cannot run as 1000:1000: too many")
    group.write_text("")
    passwd.write_text("guest:x:1000:99999999999999999999:guest:/:/bin/sh\n")
    assert guest.sh("id -G", "--user=1000").printed() == "1000\n"


def test_a_guest_that_is_closed_to_the_user_is_one_sentence(guest: Guest) -> None:
    """A sysroot that only root can enter does not let --user in, and says so."""
    guest.sysroot.chmod(0o700)
    guest.run("/bin/true", options=["--user=1000"]).refused(126, "may not search /")


# --- no way out -------------------------------------------------------------------------------

_ESCAPE: Final = r"""
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    struct stat before, after;
    stat("/", &before);
    mkdir("/tmp/x", 0755);
    if (chroot("/tmp/x")) return 2;
    for (int i = 0; i < 64; i++) chdir("..");
    chroot(".");
    stat(".", &after);
    printf("%s %s\n", before.st_dev == after.st_dev && before.st_ino == after.st_ino
           ? "inside" : "outside", access("/etc/group", F_OK) ? "lost" : "guest");
    return 0;
}
"""


def test_the_old_trick_does_not_lead_out_of_the_root(guest: Guest) -> None:
    """chroot and `..` as root end at the guest's root: it is the namespace's, not a chroot's."""
    program = compiled(guest, _ESCAPE)
    assert guest.run(program, options=["--chdir=/"]).printed() == "inside guest\n"


def test_the_old_root_is_gone(guest_root: Guest, workplace: Path) -> None:
    """The guest's mounts are its root and what was laid over it, none of them the old root."""
    table = guest_root.sh("cat /proc/self/mountinfo", "--proc=fresh", "--sys=none", "--dev=fresh")
    places = [line.split()[4] for line in table.printed().splitlines()]
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")]
    assert sorted(places) == sorted(["/", "/proc", "/dev", "/dev/pts", "/dev/shm", *devices])
    same = guest_root.sh("stat -c %d:%i / /.. /../../..").printed().split()
    assert len(set(same)) == 1 and same[0] != f"{os.stat('/').st_dev}:{os.stat('/').st_ino}"


def test_no_temporary_directory_is_made(guest_root: Guest, workplace: Path) -> None:
    """A run works where there is no place for temporary files at all."""
    env = {**os.environ, "TMPDIR": str(workplace / "absent")}
    assert guest_root.sh("echo fine", env=env).printed() == "fine\n"
    assert tempfile.gettempdir() != str(workplace / "absent")
