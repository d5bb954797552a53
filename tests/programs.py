"""Small real programs and libraries for tests, made by gcc, and a process inside the guest root.

They are linked against nothing but each other, so the musl guest's loader runs them as well as the
machine's own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from tests.children import in_child

T = TypeVar("T")

MUSL: Final = "/lib/ld-musl-x86_64.so.1"
GLIBC: Final = "/lib64/ld-linux-x86-64.so.2"

_SOURCE: Final = 'void _start(void){__asm__("mov $60,%eax; xor %edi,%edi; syscall");}'


def _gcc(out: Path, source: str, needs: Sequence[str], *options: str) -> Path:
    """Link *out* so that it needs *needs*, names or paths, which need not exist."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stubs = []
        for number, name in enumerate(needs):
            stub = Path(folder, f"{number}.so")
            _run(stub, "int stub;", "-shared", f"-Wl,-soname,{name}")
            stubs.append(str(stub))
        _run(out, source, "-Wl,--no-as-needed", *options, *stubs)
    return out


def _run(out: Path, source: str, *options: str) -> None:
    # The source first: what comes after -x none is told by its name.
    command = ["gcc", "-nostdlib", "-o", str(out), "-x", "c", "-", "-x", "none", *options]
    subprocess.run(command, input=source.encode(), check=True)


def library(out: Path, *needs: str, soname: str | None = None, options: Sequence[str] = ()) -> Path:
    """Make the shared library *out*, whose soname is its own name where none is given."""
    return _gcc(out, "int it;", needs, "-shared", f"-Wl,-soname,{soname or out.name}", *options)


def program(out: Path, loader: str, *needs: str, options: Sequence[str] = ()) -> Path:
    """Make the program *out*, which exits with 0 at once."""
    return _gcc(out, _SOURCE, needs, "-pie", "-fPIE", f"-Wl,--dynamic-linker={loader}", *options)


def run_path(where: str) -> tuple[str, ...]:
    """The option for DT_RUNPATH."""
    return ("-Wl,--enable-new-dtags", f"-Wl,-rpath,{where}")


def old_path(where: str) -> tuple[str, ...]:
    """The option for DT_RPATH."""
    return ("-Wl,--disable-new-dtags", f"-Wl,-rpath,{where}")


def status_of(path: bytes, environment: Mapping[bytes, bytes]) -> int:
    """Run a program without a word, and give its exit status."""
    silence, end = os.pipe()
    pid = os.posix_spawn(
        path, [path], environment, file_actions=[(os.POSIX_SPAWN_DUP2, end, fd) for fd in (1, 2)]
    )
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(silence)
    os.close(end)
    return status


def inside(root: Path, work: Callable[[], T], uid: int = 0) -> T:
    """What *work* returns in a process whose root is *root*; it may import nothing there."""

    def enter() -> T:
        os.chroot(root)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        imported: list[object] = []
        listening = True

        def listen(event: str, details: tuple[object, ...]) -> None:
            if listening and event == "import":
                imported.append(details[0])

        sys.addaudithook(listen)
        try:
            return work()
        finally:
            listening = False
            assert not imported, f"imported inside the guest: {imported}"

    return in_child(enter)
