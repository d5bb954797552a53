"""Real programs in `sysroot-fs run`, on the machine's disk and on a volume that folds case.

That each of them runs on the guest's own loader is shown in `test_programs`; here it is the mount
that has to bear what they do.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.matrix import guests, programs
from tests.matrix.volumes import open_volume
from tests.runs import Guest, Result


@pytest.fixture(scope="module", params=["plain", "zfs"])
def full(request: pytest.FixtureRequest, session_workplace: Path) -> Iterator[Guest]:
    """A guest with all programs, over an empty host."""
    base = session_workplace / f"full-{request.param}"
    base.mkdir()
    with open_volume(request.param, base) as volume:
        guest = Guest(volume.path / "guest", base / "host")
        guest.host.mkdir()
        guests.unpack(guest.sysroot)
        programs.unpack(guest.sysroot)
        yield guest
    shutil.rmtree(base)


@pytest.fixture
def work(full: Guest, request: pytest.FixtureRequest) -> str:
    """A fresh directory of the guest, by its path in there."""
    name = request.node.name.partition("[")[0][-60:]
    (full.sysroot / "root" / name).mkdir(parents=True)
    return f"/root/{name}"


def test_the_shell_and_the_tools(full: Guest, work: str) -> None:
    """A script of busybox, bash and GNU tools that uses most of what a file system can do."""
    script = f"""
    set -e
    cd {work}
    mkdir -p a/b/c && echo text >a/b/c/File && echo other >a/b/c/file
    ln -s ../c/File a/b/c/link && ln a/b/c/File a/hard
    cp -a a copy && diff -r a copy
    tar cf - a | busybox tar xf - -C copy && diff -r a copy/a
    find copy -type f | sort | xargs cat | sha256sum
    (cd a && mv b/c/File b/c/FILE && ls b/c)
    stat -c '%h %s' a/hard
    rm -r a copy && ls
    """
    out = full.run("/bin/bash", "-c", script).printed().splitlines()
    assert out[1:] == ["FILE", "file", "link", "2 5"]


def test_bash_runs_jobs(full: Guest) -> None:
    """Without a terminal: background jobs, waited for, with their statuses, and process groups."""
    script = """
    set -m
    (exit 3) & one=$!
    wait $one; echo $?
    sleep 100 & jobs -r | grep -c Running; kill %%; wait %% 2>/dev/null; echo $?
    a=(x y z); echo "${a[@]:1}" "$(cat <(echo process substitution))"
    """
    out = full.run("/bin/bash", "-c", script)
    assert (out.status, out.out.decode().split("\n")[:3]) == (0, ["3", "1", "143"])
    assert b"y z process substitution" in out.out


def test_sqlite_keeps_its_locks(full: Guest, work: str) -> None:
    """Two processes write into one database, in rollback and in WAL mode; nothing is lost."""
    script = f"""
    cd {work}
    for mode in delete wal; do
        sqlite3 $mode.db "pragma journal_mode=$mode; create table t(who, n);" >/dev/null
        for who in a b; do
            for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
                sqlite3 -cmd '.timeout 30000' $mode.db "insert into t values('$who', $n);" || exit 1
            done &
        done
        wait
        sqlite3 $mode.db "select who, count(*), sum(n) from t group by who; pragma integrity_check;"
    done
    """
    assert full.sh(script).printed().split() == ["a|15|120", "b|15|120", "ok"] * 2


def test_a_sqlite_lock_is_seen_by_the_other(full: Guest, work: str) -> None:
    """While one holds the database, another that does not wait is told that it is locked."""
    script = f"""
    cd {work} && sqlite3 db "create table t(x);" && mkfifo go
    (echo 'begin exclusive;'; echo '.shell echo held >go'; cat hold) 2>/dev/null >in.sql
    mkfifo hold
    sh -c 'exec 3<>hold; {{ echo "begin exclusive;"; echo ".shell echo held >go"; read line <&3;
        echo "commit;"; }} | sqlite3 db' &
    read held <go
    sqlite3 db "insert into t values(1);" 2>&1
    echo end >hold; wait
    sqlite3 db "insert into t values(2); select * from t;"
    """
    out = full.sh(script).printed()
    assert "database is locked" in out
    assert out.splitlines()[-1] == "2"


def test_lua_and_jq_find_their_libraries(full: Guest, work: str) -> None:
    """Programs whose code is in shared libraries of the guest."""
    text = 'io.write(string.format("%s %d", _VERSION, #arg))'
    (full.sysroot / work[1:] / "x.lua").write_text(text)
    assert full.run("lua", f"{work}/x.lua", "a", "b").printed() == "Lua 5.4 2"
    filtered = full.run("jq", "-c", 'map(select(test("^a(?<x>b+)$")))', stdin=b'["abb", "ac"]')
    assert json.loads(filtered.printed()) == ["abb"]


def test_cmake_and_ninja_build_with_the_hosts_compiler(full: Guest, work: str) -> None:
    """The guest's build tools, and the host's compiler reached through the fallback; twice."""
    place = full.sysroot / work[1:]
    (place / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); }\n')
    (place / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(Built C)\nadd_executable(Built main.c)\n"
    )
    options = ["-o", "host_writes=ro,deny=/tmp", "--env", "PATH=/usr/bin:/bin"]

    def guest(script: str) -> Result:
        # Later options win: this is the machine itself, not to be written to.
        return full.sh(f"cd {work} && {script}", "--host", "/", *options)

    built = guest("cmake -G Ninja -B build . >log 2>&1 || cat log; ninja -C build && build/Built")
    assert built.printed().splitlines()[-1] == "built"
    assert "no work to do" in guest("ninja -C build").printed()


def test_node_uses_threads_and_promises(full: Guest, work: str) -> None:
    """Workers that write and rename files at once, through fs.promises."""
    program = """
    const { Worker, isMainThread, workerData } = require('worker_threads');
    const fs = require('fs/promises');
    async function write(n) {
        for (let i = 0; i < 20; i++) {
            const name = `${process.cwd()}/w${n}-${i}`;
            await fs.writeFile(name + '.tmp', `${n} ${i}`);
            await fs.rename(name + '.tmp', name);
        }
    }
    if (!isMainThread) write(workerData);
    else (async () => {
        await Promise.all([0, 1, 2, 3].map(n => new Promise((done, fail) =>
            new Worker(__filename, { workerData: n }).on('exit', done).on('error', fail))));
        const names = (await fs.readdir('.')).filter(n => n.startsWith('w'));
        const texts = await Promise.all(names.map(n => fs.readFile(n, 'utf8')));
        console.log(names.length, new Set(texts).size, names.some(n => n.endsWith('.tmp')));
    })();
    """
    (full.sysroot / work[1:] / "main.js").write_text(program)
    out = full.run("node", "main.js", options=["--chdir", work]).printed()
    assert out.split() == ["80", "80", "false"]


def test_watching_tells_guest_names(full: Guest, work: str) -> None:
    """inotify on guest paths reports the guest's spelling, never the stored name."""
    program = """
    const fs = require('fs');
    fs.mkdirSync('dir');
    const seen = [];
    const watcher = fs.watch('dir', (kind, name) => {
        seen.push(name);
        if (name == 'end') {
            console.log(JSON.stringify([...new Set(seen)]));
            watcher.close();
        }
    });
    setTimeout(() => {
        fs.writeFileSync('dir/Makefile', '');
        fs.writeFileSync('dir/makefile', '');
        fs.renameSync('dir/makefile', 'dir/MAKEFILE');
        fs.writeFileSync('dir/end', '');
    }, 50);
    """
    (full.sysroot / work[1:] / "main.js").write_text(program)
    out = full.run("node", "main.js", options=["--chdir", work]).printed()
    assert json.loads(out) == ["Makefile", "makefile", "MAKEFILE", "end"]


def test_sockets_and_fifos(full: Guest, work: str) -> None:
    """A Unix socket under a name that the volume would fold, and a fifo, between two processes."""
    program = """
    const net = require('net'), fs = require('fs');
    fs.writeFileSync('sock', 'no socket');
    const server = net.createServer(s => s.end('from the socket'));
    server.listen('Sock', () => net.connect('Sock').on('data', d => {
        console.log(String(d), fs.statSync('Sock').isSocket(), fs.readFileSync('sock', 'utf8'));
        server.close();
    }));
    """
    (full.sysroot / work[1:] / "main.js").write_text(program)
    out = full.run("node", "main.js", options=["--chdir", work]).printed()
    assert out.strip() == "from the socket true no socket"
    fifo = f"cd {work} && mkfifo pipe && (seq 1000 >pipe &) && wc -l <pipe"
    assert full.sh(fifo).printed().strip() == "1000"


def test_packages_are_unpacked_as_apt_does(full: Guest, work: str) -> None:
    """A new file beside, a link to the old one, rename over it, remove the link; four at once."""
    script = f"""
    set -e
    cd {work}
    for n in 1 2 3 4; do mkdir -p lib$n; echo old >lib$n/Libx.so; echo old >lib$n/libx.so; done
    for n in 1 2 3 4; do (
        for name in Libx.so libx.so; do
            echo new >lib$n/$name.dpkg-new && sync lib$n/$name.dpkg-new
            ln lib$n/$name lib$n/$name.dpkg-tmp
            mv lib$n/$name.dpkg-new lib$n/$name
            rm lib$n/$name.dpkg-tmp
        done ) & done; wait
    cat lib*/*ibx.so | sort | uniq -c; ls -A lib*; stat -c %h lib1/libx.so
    """
    words = full.sh(script).printed().split()
    assert words[:2] == ["8", "new"]
    listed = [word for n in range(1, 5) for word in (f"lib{n}:", "Libx.so", "libx.so")]
    assert words[2:] == [*listed, "1"]


def test_set_id_programs_gain_their_owner(full: Guest, work: str) -> None:
    """A setuid program of root's, run by a user, is root; with nosuid it is not."""
    program = full.sysroot / work[1:] / "ids"
    (full.sysroot / "root").chmod(0o755)
    shutil.copy(full.sysroot / "usr/bin/show-ids", program)
    program.chmod(0o4755)
    said = full.run(f"{work}/ids", options=["--user", "1000"]).printed()
    assert "euid=0" in said
    shut = full.run(f"{work}/ids", options=["--user", "1000", "-o", "nosuid"]).printed()
    assert "euid=1000" in shut


def test_threads_write_and_ask_at_once(full: Guest, work: str) -> None:
    """pthreads of a dynamic musl program, in sysconf and fcntl and on files."""
    full.run("threads", work).printed()


def test_a_library_that_is_not_there_is_named(full: Guest) -> None:
    """Before the program starts, in one sentence with the places; not the loader's own words."""
    full.run("lost-library").refused(
        127, "libabsent.so", "looked in /lib, /usr/local/lib, /usr/lib"
    )


def test_a_glibc_program_needs_the_hosts_loader(full: Guest, work: str) -> None:
    """Through the fallback it runs; where the policy keeps the host out a sentence says so."""
    shutil.copy(Path(sys.executable).resolve(), full.sysroot / work[1:] / "python")
    script = ["-I", "-S", "-c", "import socket, sys; print(socket.gethostname())"]
    everything = ["--host", "/", "-o", "host_writes=ro", "--env", f"PYTHONHOME={sys.base_prefix}"]
    runs = full.run(f"{work}/python", *script, options=everything)
    assert runs.printed().strip() == socket.gethostname()
    shut = full.run(f"{work}/python", *script, options=[*everything, "--fallback", "safe"])
    shut.refused(127, "/lib64/ld-linux-x86-64.so.2", "fallback=safe")
