"""The guest programs, each in a plain chroot of the guest: no sysroot-fs is in this.

What fails here is a program or its build; only what works here says something about a mount. /proc
and /dev are bound in a mount namespace of each command's own, which goes when the command goes.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests.matrix import guests, programs

pytestmark = pytest.mark.usefixtures("door")

PATIENCE: Final = 30.0
"""Seconds for a program to do what it is asked."""

_ENTER: Final = (
    'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'
)
_ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/bin",
    "HOME": "/root",
    "LC_ALL": "C",
    "TERM": "dumb",
}


@attrs.frozen
class Guest:
    """An unpacked guest with all programs."""

    root: Path

    def command(self, *words: str) -> list[str]:
        """What runs *words* in the guest; its process becomes the guest's program."""
        return ["unshare", "-m", "sh", "-c", _ENTER, str(self.root), *words]

    def run(self, *words: str, input: str = "") -> subprocess.CompletedProcess[str]:
        """The end of a guest's program, whatever its exit status."""
        return subprocess.run(
            self.command(*words),
            env=_ENVIRONMENT,
            input=input,
            encoding="utf-8",
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )

    def says(self, *words: str, input: str = "") -> str:
        """What a guest's program writes; it has to succeed."""
        done = self.run(*words, input=input)
        assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def folder(self, name: str) -> Path:
        """A fresh folder, as this process sees it; the guest sees it as /tmp/NAME."""
        path = self.root / "tmp" / name
        path.mkdir()
        return path


@pytest.fixture(scope="module")
def guest(session_workplace: Path) -> Iterator[Guest]:
    """The base guest and the programs, unpacked once for this module."""
    root = session_workplace / "programs"
    guests.unpack(root)
    programs.unpack(root)
    yield Guest(root)
    shutil.rmtree(root)


@attrs.define
class Terminal:
    """A guest's program in the foreground of a terminal of its own."""

    process: subprocess.Popen[bytes]
    master: int
    name: str
    text: str = ""
    # What is echoed can be read in the middle of a character.
    decoder: codecs.IncrementalDecoder = attrs.Factory(codecs.getincrementaldecoder("utf-8"))

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until *pattern* is there; what was read up to its end is not looked at again."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"no {pattern!r} in {self.text!r}"
            try:
                more = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                more = b""
            assert more, f"the end, without {pattern!r}, after {self.text!r}"
            self.text += self.decoder.decode(more)
        self.text = self.text[found.end() :]
        return found

    def resize(self, rows: int, columns: int) -> None:
        _set_size(self.master, rows, columns)

    def status(self) -> int:
        return self.process.wait(PATIENCE)


def _set_size(master: int, rows: int, columns: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextlib.contextmanager
def on_terminal(guest: Guest, *words: str) -> Iterator[Terminal]:
    """Run *words* on a new terminal of 30 rows and 100 columns, which is their controlling one."""
    master, slave = pty.openpty()
    try:
        _set_size(master, 30, 100)
        name = os.ttyname(slave)
        command = ["setsid", "--ctty", *guest.command(*words)]
        process = subprocess.Popen(
            command, env=_ENVIRONMENT, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        try:
            yield Terminal(process, master, name)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(master)


# --- what runs them -----------------------------------------------------------------------------

_WAITING: Final = {
    "bash": (["-c", "read line"], []),
    "sqlite3": ([], ["usr/lib/libsqlite3.so.0"]),
    "lua": (["-e", "io.read()"], ["usr/lib/liblua5.4.so.0"]),
    "jq": (["."], ["usr/lib/libjq.so.1", "usr/lib/libonig.so.5"]),
    "cmake": (["-P", "/dev/stdin"], ["usr/lib/libstdc++-*", "usr/lib/libgcc_s-*"]),
    "ninja": (["-f", "/dev/stdin"], []),
    "node": (["-e", "process.stdin.resume()"], ["usr/lib/libstdc++-*", "usr/lib/libgcc_s-*"]),
    "ptytest": (["echo"], []),
}
"""How a program is made to wait for its input, and the libraries that it needs."""


def _code(pid: int) -> set[tuple[int, int]]:
    """Device and inode of each file out of which a process can run code."""
    files = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        _, allowed, _, device, inode, *_ = line.split()
        major, _, minor = device.partition(":")
        if inode != "0" and "x" in allowed:
            files.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    return files


def _identity(path: Path) -> tuple[int, int]:
    entry = path.stat()
    return entry.st_dev, entry.st_ino


@pytest.mark.parametrize("name", sorted(_WAITING))
def test_a_program_runs_on_the_guests_loader_and_libraries(guest: Guest, name: str) -> None:
    """All its code is the guest's: itself, the musl loader and the libraries it needs."""
    arguments, libraries = _WAITING[name]
    wanted = {_identity(guest.root / "usr/bin" / name), _identity(guest.root / guests.LOADER)}
    for pattern in libraries:
        (library,) = guest.root.glob(pattern)
        wanted.add(_identity(library))
    process = subprocess.Popen(
        guest.command(f"/bin/{name}", *arguments),
        env=_ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while (code := _code(process.pid)) != wanted and time.monotonic() < deadline:
            assert process.poll() is None, "it has not waited"
            time.sleep(0.01)
        assert code == wanted
    finally:
        process.kill()
        process.communicate()


def test_a_program_without_its_library_says_which(guest: Guest) -> None:
    """The loader's message and status, which a runner of guests has to pass on."""
    done = guest.run("lost-library")
    assert done.returncode == 127
    assert "libabsent.so" in done.stderr
    assert not list(guest.root.rglob("libabsent*"))


# --- bash ---------------------------------------------------------------------------------------


def test_bash_has_arrays(guest: Guest) -> None:
    """Indexed and associative ones."""
    script = 'a=(x y); a+=(z); declare -A m=([k]=v); echo "${#a[@]} ${a[-1]} ${m[k]}"'
    assert guest.says("bash", "-c", script) == "3 z v\n"


def test_bash_lists_its_jobs(guest: Guest) -> None:
    """In a script, with job control switched on."""
    script = "set -m; sleep 50 & jobs; kill %1; wait %1; echo $?"
    said = guest.says("bash", "-c", script).splitlines()
    assert re.fullmatch(r"\[1\]\+ +Running +sleep 50 &", said[0])
    assert said[-1] == str(128 + signal.SIGTERM)


def test_bash_stops_and_resumes_a_job_on_a_terminal(guest: Guest) -> None:
    """^Z, jobs, fg and ^C, which need a terminal that is the shell's."""
    with on_terminal(guest, "bash", "--norc", "-i") as terminal:
        terminal.type("PS1='ne''xt> '\n")
        terminal.expect("next> ")
        terminal.type("cat\n")
        terminal.type("to and fro\n")
        terminal.expect(r"to and fro\r\nto and fro")
        terminal.type("\x1a")
        terminal.expect(r"\[1\]\+ +Stopped +cat")
        terminal.expect("next> ")
        terminal.type("jobs\n")
        terminal.expect(r"\[1\]\+ +Stopped +cat")
        terminal.expect("next> ")
        terminal.type("fg\n")
        terminal.expect(r"\r\ncat\r\n")
        # Its answer shows that the job has the terminal: ^C would still go to the shell before.
        terminal.type("once more\n")
        terminal.expect(r"once more\r\nonce more")
        terminal.type("\x03")
        terminal.expect("next> ")
        terminal.type("echo $?; exit 7\n")
        terminal.expect(rf"\r\n{128 + signal.SIGINT}\r\n")
        assert terminal.status() == 7


# --- sqlite, lua, jq ----------------------------------------------------------------------------


def test_sqlite_keeps_a_table_in_wal_mode(guest: Guest) -> None:
    """One connection's log holds what the next one reads."""
    folder = guest.folder("sqlite")
    script = """\
PRAGMA journal_mode=WAL;
CREATE TABLE t(n INTEGER, s TEXT);
WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000)
    INSERT INTO t SELECT n, printf('row %d', n) FROM c;
.shell wc -c < /tmp/sqlite/db-wal
"""
    mode, logged = guest.says("sqlite3", "/tmp/sqlite/db", input=script).splitlines()
    assert mode == "wal"
    assert int(logged) > 4096
    query = "SELECT count(*), sum(n), max(s) FROM t; PRAGMA integrity_check;"
    assert guest.says("sqlite3", "/tmp/sqlite/db", query) == "1000|500500|row 999\nok\n"
    assert (folder / "db").read_bytes()[18:20] == b"\2\2"  # the file format's mark of WAL


def test_lua_formats_and_matches(guest: Guest) -> None:
    """Its string library is in its shared library."""
    script = 'print(string.format("%05.1f %q %s", 2.25, "a\\n", ("k=v"):match("=(.*)")), _VERSION)'
    assert guest.says("lua", "-e", script) == '002.2 "a\\\n" v\tLua 5.4\n'


def test_lua_reads_a_module_and_writes_a_file(guest: Guest) -> None:
    """By its own ways to the filesystem."""
    folder = guest.folder("lua")
    (folder / "double.lua").write_text("return function(n) return 2 * n end\n")
    script = """
        package.path = "/tmp/lua/?.lua"
        local file = assert(io.open("/tmp/lua/out", "w"))
        file:write(require("double")(21)); file:close()
    """
    guest.says("lua", "-e", script)
    assert (folder / "out").read_text() == "42"


def test_jq_filters_with_a_regular_expression(guest: Guest) -> None:
    """`capture` is done by libonig; math comes from libc."""
    rows = json.dumps([{"name": name} for name in ("ab-12", "none", "é-7")])
    filter_ = 'map(.name | capture("^(?<word>\\\\w+)-(?<n>\\\\d+)$") | .n |= tonumber)'
    assert json.loads(guest.says("jq", "-c", filter_, input=rows)) == [
        {"word": "ab", "n": 12},
        {"word": "é", "n": 7},
    ]
    assert guest.says("jq", "-n", "pow(2; 10) | floor") == "1024\n"


# --- cmake, ninja, node -------------------------------------------------------------------------


def test_cmake_and_ninja_build_a_project(guest: Guest) -> None:
    """A project without a compiler: cmake writes the rules, ninja runs them, once."""
    assert guest.says("cmake", "--version").startswith("cmake version ")
    folder = guest.folder("tiny")
    (folder / "in.txt").write_text("tiny\n")
    (folder / "CMakeLists.txt").write_text("""\
cmake_minimum_required(VERSION 3.20)
project(tiny LANGUAGES NONE)
add_custom_command(OUTPUT loud.txt DEPENDS in.txt
    COMMAND tr a-z A-Z < ${CMAKE_SOURCE_DIR}/in.txt > loud.txt)
add_custom_target(loud ALL DEPENDS loud.txt)
""")
    guest.says("cmake", "-G", "Ninja", "-S", "/tmp/tiny", "-B", "/tmp/tiny/build")
    assert "[1/1]" in guest.says("ninja", "-C", "/tmp/tiny/build")
    assert (folder / "build/loud.txt").read_text() == "TINY\n"
    assert "no work to do" in guest.says("ninja", "-C", "/tmp/tiny/build")


def test_node_works_with_threads_and_files(guest: Guest) -> None:
    """Four workers compute and write files side by side; the main thread reads them."""
    folder = guest.folder("node")
    (folder / "work.mjs").write_text("""\
import { Worker, isMainThread, workerData, threadId } from "node:worker_threads";
import { promises as fs } from "node:fs";
const here = new URL(import.meta.url).pathname;
if (isMainThread) {
    const ends = [1, 2, 3, 4].map((n) => new Promise((done, failed) => {
        const worker = new Worker(here, { workerData: n });
        worker.on("error", failed);
        worker.on("exit", done);
    }));
    const codes = await Promise.all(ends);
    const names = (await fs.readdir("/tmp/node/out")).sort();
    const read = (name) => fs.readFile(`/tmp/node/out/${name}`, "utf8");
    const texts = await Promise.all(names.map(read));
    console.log(JSON.stringify({ codes, names, texts }));
} else {
    let sum = 0;
    for (let i = 0; i < 3000000; i++) sum += i % workerData;
    await fs.mkdir("/tmp/node/out", { recursive: true });
    await fs.writeFile(`/tmp/node/out/${workerData}`, `${sum} ${threadId > 0}`);
}
""")
    assert json.loads(guest.says("node", "/tmp/node/work.mjs")) == {
        "codes": [0, 0, 0, 0],
        "names": ["1", "2", "3", "4"],
        "texts": ["0 true", "1500000 true", "3000000 true", "4500000 true"],
    }


def test_node_starts_processes(guest: Guest) -> None:
    """Another program of the guest, and another node."""
    script = """
        const { execFileSync } = require("node:child_process");
        const options = { encoding: "utf8" };
        console.log(execFileSync("uname", ["-s"], options).trim());
        console.log(execFileSync(process.execPath, ["-p", "6 * 7"], options).trim());
    """
    assert guest.says("node", "-e", script) == "Linux\n42\n"


# --- the small ones -----------------------------------------------------------------------------


def test_show_ids_tells_a_setuid_start(guest: Guest) -> None:
    """As root, as somebody, and as somebody with the setuid bit on it."""
    assert guest.says("show-ids") == "uid=0 euid=0 gid=0 egid=0 secure=0\n"
    somebody = ["chroot", "--userspec=1000:1000", "--groups=", "/"]
    assert guest.says(*somebody, "show-ids") == "uid=1000 euid=1000 gid=1000 egid=1000 secure=0\n"
    shutil.copy(guest.root / "usr/bin/show-ids", guest.root / "usr/bin/show-ids-as-root")
    (guest.root / "usr/bin/show-ids-as-root").chmod(0o4755)
    said = guest.says(*somebody, "show-ids-as-root")
    assert said == "uid=1000 euid=0 gid=1000 egid=1000 secure=1\n"


def test_threads_count_together(guest: Guest) -> None:
    """Its eight threads lose no count, and each has written its own file."""
    folder = guest.folder("threads")
    assert guest.says("threads", "/tmp/threads") == "8 threads counted to 1600\n"
    for number in range(8):
        content = (folder / f"thread-{number}").read_bytes()
        assert content == struct.pack("200i", *range(200 * number, 200 * (number + 1)))


def test_threads_says_what_failed(guest: Guest) -> None:
    """It can fail: in a folder that is not there."""
    done = guest.run("threads", "/tmp/nowhere")
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr


def test_ptytest_sees_no_terminal(guest: Guest) -> None:
    """On pipes."""
    said = guest.says("ptytest").splitlines()
    assert said == ["isatty 0 0 0", "ttyname none none none", "foreground no", "size none"]


def test_ptytest_sees_its_terminal(guest: Guest) -> None:
    """All three descriptors are it, and the program is in its foreground."""
    with on_terminal(guest, "ptytest") as terminal:
        names = terminal.expect(r"isatty 1 1 1\r\nttyname (\S+) (\S+) (\S+)\r\n")
        assert set(names.groups()) == {terminal.name}
        terminal.expect("foreground yes\r\nsize 30 100\r\n")
        assert terminal.status() == 0


def test_ptytest_asks_and_answers(guest: Guest) -> None:
    """The question is there before the answer is typed; without one it fails."""
    with on_terminal(guest, "ptytest", "echo") as terminal:
        terminal.expect(r"name\? $")
        terminal.type("Käthe\n")
        terminal.expect("hello, Käthe\r\n")
        assert terminal.status() == 0
    assert guest.run("ptytest", "echo").returncode == 1


def test_ptytest_catches_an_interrupt(guest: Guest) -> None:
    """^C reaches it through the terminal, and it says so with its exit status."""
    with on_terminal(guest, "ptytest", "catch-int") as terminal:
        terminal.expect("ready")
        terminal.type("\x03")
        assert terminal.status() == 42


def test_ptytest_follows_its_terminals_size(guest: Guest) -> None:
    """Each change is told, until a line is typed."""
    with on_terminal(guest, "ptytest", "winch") as terminal:
        terminal.expect("size 30 100")
        for rows, columns in ((20, 40), (50, 132)):
            terminal.resize(rows, columns)
            terminal.expect(f"size {rows} {columns}\r\n")
        terminal.type("enough\n")
        assert terminal.status() == 0


@pytest.mark.parametrize("size", [0, 1, 12345, 1_000_000])
def test_ptytest_spews(guest: Guest, size: int) -> None:
    """As many bytes as it was asked for, each where it belongs."""
    pattern = "".join(f"{number:07d} " for number in range(size // 8 + 1))
    assert guest.says("ptytest", "spew", str(size)) == pattern[:size]
