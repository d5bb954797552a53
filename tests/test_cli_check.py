"""`sysroot-fs check`: what it says to people and to programs, and what it changes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar import escape, volume
from sidecar.index import DirectoryIndex
from sidecar.index_file import format_rows
from sidecar.naming import INDEX_FILE, INDEX_LOCK, Policy, token
from sysroot_fs.cli import main
from sysroot_fs.cli.check import KINDS, PAUSE, Progress
from tests.caseless import Volumes
from tests.children import in_child
from tests.matrix import guests

VECTORS = Path(__file__).parent / "vectors/kernel_collisions.txt"
CHECKOUT = Path(__file__).parent.parent


def kernel_paths() -> list[str]:
    """The paths in the Linux sources that differ from another one in case only."""
    lines = VECTORS.read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def checked(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """The exit status and what was printed; nothing goes to stderr."""
    status = main(["check", *map(str, words)])
    said = capsys.readouterr()
    assert said.err == ""
    return status, said.out


def as_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, Any]:
    status, out = checked(capsys, "--json", *words)
    return status, json.loads(out)


def failed(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """The exit status and the one line on stderr."""
    status = main(["check", *map(str, words)])
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return status, said.err


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a pair of files, a pair of directories and a name that Windows refuses."""
    root = tmp_path / "tree"
    for name in ("src/Include", "src/include", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("etc/README", "etc/readme", "etc/a:b"):
        (root / name).touch()
    return root


def test_nothing_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tree without trouble is one line about what was asked, one about what was read, and 0."""
    (tmp_path / "file").touch()
    status, out = checked(capsys, tmp_path)
    assert status == 0
    first, last = out.splitlines()
    assert first.startswith(f"{tmp_path}: its volume keeps every name") and "fold" in first
    assert last == "nothing found; 1 directory with 1 name"
    assert os.listdir(tmp_path) == ["file"]


def test_text(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings stand under their directory, a line each, then what to do, then the counts."""
    status, out = checked(capsys, tree, "--for", "exfat")
    assert status == 1
    lines = out.splitlines()
    assert lines[1] == "/etc"
    assert lines[2] == (
        "  ! collision           README, readme: one name on exFAT, where only one would be left"
    )
    assert lines[3].startswith("  ! refused             a:b: holds a character")
    assert lines[4] == "/src"
    assert "they would be mixed" in lines[5]
    assert lines[6] == "what to do"
    assert lines[-1] == "found: collision 2, refused 1; 5 directories with 7 names"


def test_json(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: one object; every finding has every key."""
    status, told = as_json(capsys, tree, "--for", "fold", "--for", "ntfs")
    assert status == 1
    assert told["kinds"] == ["ntfs", "fold"]
    assert told["counts"] == {"collision": 2, "refused": 1}
    assert (told["source"], told["directories"], told["names"]) == ("directory", 5, 7)
    pair, refused, directories = told["findings"]
    assert len({tuple(finding) for finding in told["findings"]}) == 1
    assert pair["names"][0] == {"guest": "README", "stored": "README"}
    assert (pair["what"], pair["severity"], pair["directory"]) == ("collision", "warning", "/etc")
    assert (pair["mergeable"], directories["mergeable"]) == (False, True)
    assert refused["kinds"] == ["ntfs"]


def test_json_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a finding it is an object with an empty list."""
    status, told = as_json(capsys, tmp_path)
    assert (status, told["findings"], told["counts"]) == (0, [], {})
    assert (told["transparent"], told["measured"]) == (True, True)


def test_names_that_are_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is not UTF-8 is escaped for people and has its bytes in hex for programs."""
    (tmp_path / "caf\udce9\n").touch()
    _, out = checked(capsys, tmp_path, "--for", "apfs")
    assert r"caf\xe9\n: is not UTF-8" in out
    _, told = as_json(capsys, tmp_path, "--for", "apfs")
    assert told["findings"][0]["names"][0]["guest_hex"] == b"caf\xe9\n".hex()


def test_notes_are_shown_when_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes are counted and not shown, unless --verbose is given, and never make it 1."""
    (tmp_path / "aux.c").touch()
    status, out = checked(capsys, tmp_path, "--for", "exfat")
    assert (status, "aux.c" in out) == (0, False)
    assert out.splitlines()[-1].endswith("1 note (--verbose shows them)")
    status, out = checked(capsys, tmp_path, "--for", "exfat", "--verbose")
    assert (status, "aux.c" in out) == (0, True)


def test_a_directory_that_cannot_be_written(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever may only read is told what can be seen, and that nothing was tried."""
    (workplace / "A").touch()
    (workplace / "a").touch()

    def look() -> tuple[int, str]:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            return main(["check", str(workplace)]), said.getvalue()

    status, out = in_child(look, uid=1234, gid=1234)
    assert status == 1
    assert "(seen without writing to it)" in out.splitlines()[0]
    assert out.splitlines()[-1] == "found: collision 1; 1 directory with 2 names"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """The help names every kind and says what the exit status means."""
    assert main(["check", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{kind}" in text for kind in KINDS)
    assert "1 if something was" in text


# --- real inputs --------------------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A tar with the paths of the Linux sources that collide."""
    path = tmp_path / "linux.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for name in ("aux.h", *kernel_paths()):
            tar.addfile(tarfile.TarInfo(f"linux/{name}"))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_pairs(kernel: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All thirteen pairs of the Linux sources are found for every kind."""
    status, told = as_json(capsys, kernel, "--for", kind)
    groups = [one["names"] for one in told["findings"] if one["what"] == "collision"]
    assert (status, len(groups), {len(group) for group in groups}) == (1, 13, {2})
    assert told["source"] == "tar"
    assert told["counts"].get("refused", 0) == (kind == "ntfs")


def test_a_tar_is_judged_for_all(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --for a pair in an archive is one finding with every kind."""
    _, told = as_json(capsys, kernel)
    assert told["kinds"] == list(KINDS)
    assert told["findings"][-1]["kinds"] == list(KINDS)


def test_from_a_pipe(tmp_path: Path) -> None:
    """An archive comes through standard input: here Debian's PAM.7.gz and its link pam.7.gz."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("./usr/share/man/man7/PAM.7.gz"))
        link = tarfile.TarInfo("./usr/share/man/man7/pam.7.gz")
        link.type, link.linkname = tarfile.SYMTYPE, "PAM.7.gz"
        tar.addfile(link)
    done = subprocess.run(
        [sys.executable, "-m", "sysroot_fs", "check", "-"],
        input=data.getvalue(),
        capture_output=True,
        cwd=CHECKOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"/usr/share/man/man7\n  ! collision           PAM.7.gz, pam.7.gz: " in done.stdout


def test_the_musl_guest(capsys: pytest.CaptureFixture[str]) -> None:
    """The guest root of the tests goes anywhere."""
    archive = guests.ensure()
    capsys.readouterr()  # what it says where it has to build first
    status, told = as_json(capsys, archive)
    assert (status, told["findings"]) == (0, [])
    assert told["names"] > 300


@pytest.mark.parametrize("which", ["zfs", "exfat"])
def test_a_sysroot_on_a_volume_that_folds(
    which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the kernel's pairs are kept apart all is well; a plain copy of it would be, too."""
    with ExitStack() as stack:
        sysroot = Volumes(tmp_path, stack)[which].path
        fd = os.open(sysroot, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, fd)
        index = DirectoryIndex(volume.probe(fd), Policy.NATURAL)
        for name in {path.rpartition("/")[2] for path in kernel_paths()}:
            index.store(
                fd,
                os.fsencode(name),
                lambda new: os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=fd)),
            )
        status, told = as_json(capsys, sysroot)
        assert (status, told["transparent"], told["notes"]) == (0, False, 13)
        assert as_json(capsys, sysroot, "--for", "apfs")[0] == 0
        assert as_json(capsys, sysroot, "--for", "fold")[1]["counts"] == {"collision": 13}


# --- repair -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A sysroot with a row that has no object, a lost token, and a name that is stored twice."""
    root = tmp_path / "sysroot"
    (root / "d").mkdir(parents=True)
    (root / "d" / INDEX_FILE.decode()).write_bytes(format_rows({b"gone": token(b"gone")}))
    for name in (b".ef_00000000000000aa", b"twice", escape.encode(b"twice")):
        (root / "d" / name.decode()).touch()
    return root


def test_repair_is_a_dry_run(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes it is said what would be mended, and nothing is."""
    before = (damaged / "d" / INDEX_FILE.decode()).read_bytes()
    status, out = checked(capsys, damaged, "--repair")
    assert status == 1
    assert "harmless; with --yes the row is dropped" in out
    assert (damaged / "d" / INDEX_FILE.decode()).read_bytes() == before
    assert as_json(capsys, damaged, "--repair")[1]["findings"][0]["mended"] is None


def test_repair(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --yes what is safe is mended and said so; the next check finds the rest only."""
    status, out = checked(capsys, damaged, "--repair", "--yes")
    assert status == 1
    assert "mended: the row is dropped" in out
    assert out.splitlines()[-1].endswith("; 1 mended")
    status, told = as_json(capsys, damaged)
    assert (status, told["counts"]) == (1, {"stored-twice": 1, "token-without-row": 1})
    assert not (damaged / "d" / INDEX_FILE.decode()).exists()


def test_what_cannot_be_mended_is_said(
    damaged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair that fails has its reason beside it, and the check goes on."""
    monkeypatch.setattr("sidecar.index_file.LOCK_TIMEOUT", 0.01)
    with open(damaged / "d" / (INDEX_LOCK.decode()), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _, out = checked(capsys, damaged, "--repair", "--yes")
    assert "not mended: device or resource busy" in out
    assert "stored-twice" in out


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--yes", "/"], ["--for", "fat12", "/"], [], ["--repair", "-"], ["--for"]],
)
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line is one sentence and exit status 2."""
    assert failed(capsys, *words)[0] == 2


def test_an_archive_cannot_be_repaired(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--repair of a tar is refused, and says what to do."""
    status, said = failed(capsys, kernel, "--repair")
    assert (status, "unpack it first" in said) == (2, True)


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is missing, or neither directory nor tar, is one sentence and exit status 1."""
    (tmp_path / "file").write_text("no tar" * 400)
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("none", "no such file"), ("file", "neither"), ("fifo", "neither")):
        status, said = failed(capsys, tmp_path / name)
        assert status == 1 and why in said and str(tmp_path / name) in said


def test_a_damaged_archive(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive that breaks off is a finding, after which the rest is still told."""
    kernel.write_bytes(kernel.read_bytes()[: kernel.stat().st_size // 2])
    status, told = as_json(capsys, kernel)
    assert status == 1
    assert told["findings"][0]["what"] == "unreadable"
    assert "damaged" in told["findings"][0]["means"]


# --- the progress line --------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the progress line is told; a test moves it."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress_is_drawn_now_and_then(clock: list[float]) -> None:
    """Nothing at first, then a line at most every 0.2 s, each over the last."""
    terminal = Terminal()
    progress = Progress(terminal)
    progress.tick(1, 10)
    assert terminal.getvalue() == ""
    for step in range(8):
        clock[0] += PAUSE * 0.51
        progress.tick(2, 1000 * step)
    drawn = terminal.getvalue().split("\r")
    assert len(drawn) == 1 + 4
    assert drawn[-1] == "2 directories, 7000 names, 1 s\x1b[K"


def test_progress_is_erased(clock: list[float]) -> None:
    """Whatever is printed next stands on an empty line, and nothing is erased twice."""
    terminal = Terminal()
    progress = Progress(terminal)
    clock[0] += 1
    progress.tick(1, 1)
    for _ in range(2):
        progress.erase()
    assert terminal.getvalue().endswith("\x1b[K\r\x1b[K")
    assert terminal.getvalue().count("\r") == 2


def test_no_progress_without_a_terminal(clock: list[float]) -> None:
    """A log file gets no progress lines."""
    stream = io.StringIO()
    progress = Progress(stream)
    clock[0] += 10
    progress.tick(5, 5)
    progress.erase()
    assert (stream.getvalue(), progress.names) == ("", 5)
