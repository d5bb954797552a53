"""What the contestants work on: the same names and bytes in every run and for every contestant."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sysconfig
import tarfile
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.matrix.building import ONE_DATE

BIG: Final = 16 << 20
"""Bytes of the file that reads and writes are timed in; the client has the same number."""
MANY: Final = 4000
"""Files of which each is asked for once a mount."""
LISTED: Final = (10, 1_000, 100_000)
"""Entries of the directories that are listed."""

_WORDS: Final = ("int", "char", "static", "return", "struct", "if", "else", "for", "while", "size")
_PACKAGES: Final = ("asyncio", "concurrent", "email", "html", "http", "json", "logging", "unittest")
_MODULES: Final = ("argparse", "ast", "bz2", "calendar", "cmd", "code", "configparser", "csv")
IMPORTS: Final = "asyncio, email.mime.text, http.server, json, logging.config, unittest.mock"
"""What is imported out of the tree; more modules come along."""


def micro(tree: Path, listed: tuple[int, ...] = LISTED) -> None:
    """What the client expects: files, a link, an attribute, directories to list."""
    (tree / "file").write_bytes(b"x" * 4096)
    os.setxattr(tree / "file", "user.bench", b"value")
    (tree / "big").write_bytes(b"y" * BIG)
    (tree / "scratch").write_bytes(b"z" * BIG)
    (tree / "link").symlink_to("file")
    entries(tree / "many", MANY)
    for size in listed:
        entries(tree / f"listed-{size}", size)


def entries(directory: Path, count: int) -> None:
    """*count* empty files f000000, f000001 ... in a new directory."""
    directory.mkdir(parents=True)
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(count):
            os.mknod(f"f{number:06}", stat.S_IFREG | 0o644, dir_fd=held)
    finally:
        os.close(held)


def folders(tree: Path, count: int, each: int, twins: bool = False) -> None:
    """*count* files in folders of *each*; with *twins* two of them differ in case only."""
    for number in range(count // each):
        directory = tree / f"folder{number:04}"
        directory.mkdir(parents=True)
        names = [f"f{file:06}" for file in range(each)]
        if twins:
            names[:2] = ["Makefile", "makefile"]
        for name in names:
            os.close(os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


DEPTH: Final = 100
"""Directories one in the other; the client has the same number."""


def deep(tree: Path) -> None:
    """A file that far down."""
    bottom = tree.joinpath(*["d"] * DEPTH)
    bottom.mkdir(parents=True)
    (bottom / "file").touch()


@frozen
class Materials:
    """What whole work is done with, outside of the contestants' trees."""

    source: Path
    """A source tree as a tar."""
    repository: Path
    """The same tree as a git repository with the branches `main` and `other`."""
    program: Path
    """A C program of 15 files."""
    library: Path
    """A part of Python's library."""


def materials(base: Path, files: int = 2000) -> Materials:
    """Make them; *files* are 30 MB where they are 2000."""
    tree = base / "source"
    _source(tree, files)
    packed = base / "source.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(tree, "src")
    _program(base / "program")
    _repository(tree)
    _library(base / "library")
    return Materials(packed, tree, base / "program", base / "library")


def _source(tree: Path, files: int) -> None:
    dice = random.Random(20)
    for number in range(files):
        folder = tree / f"part{number % 23:02}" / f"unit{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        size = int(dice.expovariate(1 / 15_000)) + 100
        lines = [" ".join(dice.choices(_WORDS, k=9)) for _ in range(60)]
        text = "\n".join(dice.choices(lines, k=size // 50 + 1))
        path = folder / f"file{number:04}.{dice.choice(('c', 'h', 'txt'))}"
        path.write_text(text)
        os.utime(path, (ONE_DATE, ONE_DATE))


def _program(tree: Path) -> None:
    tree.mkdir()
    (tree / "all.h").write_text("".join(f"int part{n}(int);\n" for n in range(14)))
    for part in range(14):
        body = "\n".join(
            f"static int f{n}(int x) {{ return x * {n} + {part}; }}" for n in range(200)
        )
        calls = " + ".join(f"f{n}(x)" for n in range(200))
        head = '#include <stdio.h>\n#include "all.h"'
        own = f"int part{part}(int x) {{ return {calls}; }}"
        (tree / f"part{part}.c").write_text(f"{head}\n{body}\n{own}\n")
    calls = " + ".join(f"part{n}(1)" for n in range(14))
    (tree / "main.c").write_text(f'#include "all.h"\nint main(void) {{ return !({calls}); }}\n')


GIT: Final = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
}
"""git with no settings but these."""


def _repository(tree: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tree, env={**os.environ, **GIT}, check=True)

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "main")
    git("checkout", "-q", "-b", "other")
    for path in sorted(tree.glob("part0*/unit*/*.c")):
        path.write_text(path.read_text() + "\nother\n")
    git("commit", "-q", "-a", "-m", "other")
    git("checkout", "-q", "main")


def _library(tree: Path) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    tree.mkdir()
    for name in _PACKAGES:
        subprocess.run(["cp", "-r", stdlib / name, tree], check=True)
    for name in _MODULES:
        subprocess.run(["cp", stdlib / f"{name}.py", tree], check=True)
