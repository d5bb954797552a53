"""``make demo``: a real musl guest on a volume that really folds case, laid over this machine.

Every line of output below a ``guest#`` or ``host#`` prompt is the real output of the command that
stands there, with $SYSROOT and $MOUNT in the place of two long paths that are shown at the start.
Guest commands are started by ``sysroot-fs run``; what they did is then looked at from
the host, on the volume and through a ``sysroot-fs mount`` of the same sysroot. Ends with a table of
what was proved; exit 0 only if all of it held.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from tests.matrix import guests, volumes
from tests.matrix.volume_tools import VolumeError
from tests.waiting import comes

_LOADER: Final = "/" + guests.LOADER
_PATIENCE: Final = 10.0
_COMMAND: Final = Path(sys.executable).parent / "sysroot-fs"
_ENVIRONMENT: Final = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/root",
    "TERM": "dumb",
    "LC_ALL": "C",
}


_INTRODUCTION: Final = """\
Here is a Linux guest root, on a volume like those of macOS and Windows: to it Makefile and makefile
are one file. sysroot-fs runs programs in it all the same, with names as on Linux, and gives them
what the guest root lacks from this machine's own files.

  guest#  a command in the guest: sysroot-fs run $SYSROOT -- /bin/sh -c COMMAND
  host#   a command of this machine, outside of it"""


class DemoError(Exception):
    """The demo cannot go on; the message says why in one sentence."""


@attrs.define
class Proofs:
    """What was claimed so far and whether it held."""

    rows: list[tuple[str, bool]] = attrs.Factory(list)

    def claim(self, sentence: str, held: bool) -> None:
        self.rows.append((sentence, held))
        if not held:
            print(f"  !! did not hold: {sentence}", flush=True)

    def table(self) -> bool:
        """Print the table; true if there is something in it and all of it held."""
        title("What was proved")
        width = max((len(sentence) for sentence, _ in self.rows), default=0)
        for sentence, held in self.rows:
            print(f"  {sentence:{width}}  {'yes' if held else 'NO'}")
        return bool(self.rows) and all(held for _, held in self.rows)


@attrs.frozen
class Stage:
    """Where the demo plays: the sysroot on its volume, and the mount of it."""

    sysroot: Path
    mount: Path

    def guest(self, command: str) -> str:
        """Run a shell command inside the guest root; show and return its output."""
        return self.run("/bin/sh", "-c", command, shown=command)[1]

    def run(self, *words: str, shown: str | None = None) -> tuple[int, str]:
        """Run a program inside the guest root; show its output and return it with the status."""
        command = [str(_COMMAND), "run", str(self.sysroot), "--", *words]
        if shown is None:
            name = f"sysroot-fs run $SYSROOT -- {shlex.join(words)}"
            status, text = _show("host#", name, command, _ENVIRONMENT)
            print(f"  (exit status {status})")
            return status, text
        return _show("guest#", shown, command, _ENVIRONMENT)

    def host(self, *words: str) -> str:
        """Run a command of the host; show and return its output."""
        text = shlex.join(words).replace(str(self.sysroot), "$SYSROOT")
        return _show("host#", text.replace(str(self.mount), "$MOUNT"), words, None)[1]


def _show(
    prompt: str, shown: str, words: tuple[str, ...] | list[str], env: dict[str, str] | None
) -> tuple[int, str]:
    print(f"  {prompt} {shown}", flush=True)
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    for line in text.splitlines():
        print(f"  {line}")
    return done.returncode, text


def title(text: str) -> None:
    print(f"\n== {text}", flush=True)


# --- the scenes ---------------------------------------------------------------------------------


def show_loader(stage: Stage, proofs: Proofs) -> None:
    """The interpreter that the kernel started is the file on the volume, not one of the host's."""
    title("A guest program runs with the guest's own loader and C library")
    stage.guest("cat --version | head -n 1; busybox | head -n 1; readlink /proc/self/exe")
    # No pipe: the maps are those of the program that prints them, here one line for each file.
    maps = stage.guest("sort -u -k 6 /proc/self/maps")
    loaders = {
        (int(found[1], 16), int(found[2], 16), int(found[3]))
        for found in re.finditer(
            rf"^\S+ \S+ \S+ (\w+):(\w+) (\d+) +{re.escape(_LOADER)}$", maps, re.M
        )
    }
    seen = stage.guest(f"stat -c '%Hd %Ld %i' {_LOADER}").split()
    mounted = tuple(map(int, seen)) if len(seen) == 3 else ()
    print(f"  the loader in the maps: {sorted(loaders)}; the guest's file: {mounted}")
    proofs.claim(
        "the loader that ran is the guest's own file, by device and inode", loaders == {mounted}
    )

    stored = (stage.sysroot / guests.LOADER).read_bytes()
    proofs.claim(
        "that file is the one stored in the sysroot, byte for byte",
        Path(f"{stage.mount}{_LOADER}").read_bytes() == stored,
    )
    host = Path(_LOADER)
    print(f"  {_LOADER} on the host: {'exists, another file' if host.exists() else 'not there'}")
    proofs.claim(
        "nothing of the host's C library is in the program",
        not re.search(r"ld-linux|libc\.so\.6|libc-2", maps),
    )


def show_case(stage: Stage, proofs: Proofs) -> None:
    """Two names that the volume takes for one live side by side in the guest."""
    title("Makefile and makefile, side by side")
    stage.guest("mkdir /root/case && cd /root/case && echo upper >Makefile && echo lower >makefile")
    listed = stage.guest("ls -1 /root/case").split()
    texts = stage.guest("cd /root/case && cat Makefile makefile").split()
    proofs.claim(
        "the guest has both spellings, each with its own content",
        sorted(listed) == ["Makefile", "makefile"] and texts == ["upper", "lower"],
    )
    absent = stage.guest("cat /root/case/MAKEFILE")
    proofs.claim("a third spelling does not exist", "No such file" in absent)
    print("  on the volume itself, outside the mount:")
    stage.host("ls", "-A1", f"{stage.sysroot}/root/case")
    escaped = ".ef=" + b"makefile".hex()
    raw = stage.sysroot / "root/case"
    proofs.claim(
        "the volume stores Makefile and an escape for makefile",
        sorted(os.listdir(raw)) == sorted(["Makefile", escaped])
        and (raw / escaped).read_text() == "lower\n",
    )
    proofs.claim(
        "the volume alone takes the two names for one",
        (raw / "MAKEFILE").exists() and (raw / "MAKEFILE").read_text() == "upper\n",
    )


def show_host_files(stage: Stage, proofs: Proofs) -> None:
    """A directory that only the host has is worked in from inside, literally."""
    title("A temporary directory of the host, from inside")
    folder = Path(stage.host("mktemp", "-d").strip())
    try:
        note, moved = folder / "note", folder / "moved"
        stage.host("sh", "-c", f"echo from the host >{note}")
        read = stage.guest(f"cat {note}")
        proofs.claim("a host file is read", read == "from the host\n")
        stage.guest(f"echo from the guest >>{note}")
        text = stage.host("cat", str(note))
        proofs.claim("a host file is written", text == "from the host\nfrom the guest\n")
        inode = note.stat().st_ino
        stage.guest(f"mv {note} {moved}")
        stage.host("ls", "-1", str(folder))
        proofs.claim(
            "a host file is renamed",
            os.listdir(folder) == ["moved"] and moved.stat().st_ino == inode,
        )
        stage.guest(f"rm {moved}")
        stage.host("ls", "-1", str(folder))
        proofs.claim("a host file is removed", os.listdir(folder) == [])
        proofs.claim(
            "none of it touched the sysroot",
            os.listdir(stage.sysroot / "tmp") == [],
        )
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


def show_layers(stage: Stage, proofs: Proofs) -> None:
    """What the sysroot lacks comes from the host, what both have from the sysroot."""
    title("/etc/resolv.conf, which only the host has")
    host = Path("/etc/resolv.conf")
    if not host.is_file():
        raise DemoError("this machine has no /etc/resolv.conf to show: create one and try again")
    stage.guest("ls -1 /etc")
    text = stage.guest("cat /etc/resolv.conf")
    proofs.claim(
        "/etc/resolv.conf is the host's, and not in the sysroot",
        text == host.read_text() and not (stage.sysroot / "etc/resolv.conf").exists(),
    )
    title("/etc/passwd, which both have")
    text = stage.guest("cat /etc/passwd")
    proofs.claim(
        "/etc/passwd is the sysroot's, not the host's",
        text == (stage.sysroot / "etc/passwd").read_text() != Path("/etc/passwd").read_text(),
    )


def show_mount(stage: Stage, proofs: Proofs) -> None:
    """The same guest root at a directory, beside the runs."""
    title("The guest root at a directory, where everybody sees it")
    lines = stage.host("grep", "-w", str(stage.mount), "/proc/mounts").splitlines()
    proofs.claim(
        "`mount` shows the guest root at a directory, as fuse.sysroot",
        len(lines) == 1 and lines[0].split()[2] == "fuse.sysroot",
    )


def show_run(stage: Stage, proofs: Proofs) -> None:
    """How a run ends, well and badly, and that nothing of it stays."""
    title("How a run ends")
    before = _mounts_of(stage.sysroot)
    status, _ = stage.run("/bin/sh", "-c", "echo done; exit 42")
    proofs.claim("the exit status is the command's", status == 42)
    status, _ = stage.run("/bin/sh", "-c", "kill -KILL $$")
    proofs.claim("a command that was killed by signal 9 gives 137", status == 137)
    status, text = stage.run("no-such-program")
    proofs.claim(
        "a missing program gives 127, and where it was looked for",
        status == 127 and "looked in /usr/bin, /bin" in text,
    )
    status, text = stage.run("/bin/sh", "-c", "sleep 1000 & echo left it running")
    proofs.claim(
        "no process and no mount of any run is left",
        "left it running" in text
        and not _processes(str(stage.sysroot), b"run")
        and _mounts_of(stage.sysroot) == before,
    )


def _mounts_of(sysroot: Path) -> list[str]:
    """The mounts of it; others come and go on a machine that somebody else uses too."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if f" - fuse.sysroot {sysroot} " in line]


# --- setting up and taking away -----------------------------------------------------------------


def _folding_volume(stack: contextlib.ExitStack, base: Path) -> volumes.Volume:
    try:
        return stack.enter_context(volumes.open_volume("zfs", base))
    except VolumeError as error:
        print(f"zfs cannot be had here ({error}): exfat instead")
    return stack.enter_context(volumes.open_volume("exfat", base))


@contextlib.contextmanager
def _mounted(sysroot: Path, mount: Path) -> Iterator[Stage]:
    mount.mkdir()
    command = [str(_COMMAND), "mount", str(sysroot), str(mount)]
    print("  host# sysroot-fs mount $SYSROOT $MOUNT", flush=True)
    # Output to a file: the daemon may keep what it was given.
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60
            ).returncode
            output.seek(0)
            words = " ".join(output.read().split())
            if code or not mount.is_mount():
                raise DemoError(f"sysroot-fs mount failed (exit {code}): {words}")
            if words:
                print(f"  {words}")
            yield Stage(sysroot, mount)
        finally:
            _unmount(mount)


def _unmount(mount: Path) -> None:
    if not _is_mounted(mount):
        return
    print("  host# fusermount3 -u $MOUNT", flush=True)
    done = subprocess.run(["fusermount3", "-u", str(mount)], check=False)
    if done.returncode:
        subprocess.run(["umount", "-l", str(mount)], check=False)
    comes(lambda: not _servers(mount), _PATIENCE)


def _is_mounted(mount: Path) -> bool:
    return any(
        line.split()[1] == str(mount) for line in Path("/proc/mounts").read_text().splitlines()
    )


def _servers(mount: Path) -> list[int]:
    """Processes that were started to serve `mount`."""
    return _processes(str(mount), b"mount")


def _processes(word: str, verb: bytes) -> list[int]:
    """Processes of this command's `verb` that have `word` among their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if verb in words and os.fsencode(word) in words:
                found.append(int(process.name))
    return found


def _require() -> None:
    if os.geteuid() != 0:
        raise DemoError("the demo makes volumes and enters them: run it as root")
    if not os.path.exists("/dev/fuse"):
        raise DemoError(
            "/dev/fuse is missing: load the kernel's fuse module, or give it to the container"
        )
    if not _COMMAND.exists():
        raise DemoError(f"{_COMMAND} is missing: run `make setup`")


def _play(proofs: Proofs) -> None:
    began = time.monotonic()
    _require()
    guests.ensure()
    with tempfile.TemporaryDirectory(prefix="sysroot-fs-demo-") as name:
        base = Path(name).resolve()
        base.chmod(0o755)
        mount = base / "mnt"
        with contextlib.ExitStack() as stack:
            print(f"\n{_INTRODUCTION}", flush=True)
            title("The guest root, and where it lies")
            volume = _folding_volume(stack, base)
            sysroot = volume.path / "guest"
            guests.unpack(sysroot, "symlink" if volume.kind == "zfs" else "copy")
            print(f"  volume: {volume.kind}, which folds case; guest: musl, busybox, GNU coreutils")
            print(f"  host# SYSROOT={sysroot}")
            print(f"  host# MOUNT={mount}")
            stage = stack.enter_context(_mounted(sysroot, mount))
            scenes = (show_mount, show_case, show_host_files, show_layers, show_loader, show_run)
            for scene in scenes:
                scene(stage, proofs)
            title("Unmounting")
        left = [line for line in Path("/proc/mounts").read_text().splitlines() if str(base) in line]
        proofs.claim("unmounted, and the server has ended", not left and not _servers(mount))
        mount.rmdir()
        proofs.claim("volume and image are gone", os.listdir(base) == [])
    proofs.claim("no temporary directory is left", not base.exists())
    print(f"  {time.monotonic() - began:.0f} seconds")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    proofs = Proofs()
    try:
        _play(proofs)
    except (DemoError, guests.GuestBuildError, VolumeError) as error:
        proofs.table()
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0 if proofs.table() else 1


if __name__ == "__main__":
    sys.exit(main())
