"""The recipe of the glibc guest: Debian's own binaries, of the suite that this machine runs.

The loader is where programs ask for it, the libraries that they need are where Debian's loader
looks for them, and /bin and /usr/bin are as in the musl guests: GNU's programs are the files in
/usr/bin. Nothing is taken from the running system, which need not be what its packages were.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from sysroot_fs.guest import elf
from tests.matrix.building import (
    GuestBuildError,
    Runner,
    machine_suite,
    one,
    private_apt,
    say,
)
from tests.matrix.guest_root import LIBEXEC, link_names, make_skeleton

LOADER: Final = "lib64/ld-linux-x86-64.so.2"
_LIBRARIES: Final = "lib/x86_64-linux-gnu"
_PACKAGES: Final = ("coreutils", "busybox")
#: Debian has these from other projects, so they are busybox's here, in GNU's place.
_NOT_GNU: Final = ("hostname", "kill", "uptime")


def glibc(root: Path, work: Path, run: Runner) -> str:
    """The recipe."""
    say("  package lists of our own, and Debian's coreutils and busybox with what they need")
    trees = _unpacked(work, run)
    make_skeleton(root)
    coreutils, busybox = (trees[name] for name in _PACKAGES)
    for program in _programs(coreutils):
        shutil.copy(program, root / "usr/bin" / program.name)
    (root / LIBEXEC / "coreutils").mkdir(parents=True)
    library = "coreutils/libstdbuf.so"
    shutil.copy(one(coreutils, f"**/{library}"), root / LIBEXEC / library)
    shutil.copy(one(busybox, "**/bin/busybox"), root / "bin/busybox")
    _take_libraries(trees.values(), root)
    start = [str(root / LOADER), "--library-path", str(root / _LIBRARIES)]
    applets = run([*start, str(root / "bin/busybox"), "--list"]).split()
    for name in _NOT_GNU:
        (root / "usr/bin" / name).symlink_to("../../bin/busybox")
    link_names(root, applets)
    run([*start, str(root / "usr/bin/ls"), "--help"])
    return "-".join(_version(work, name) for name in ("libc6", *_PACKAGES))


def _unpacked(work: Path, run: Runner) -> dict[str, Path]:
    """The packages and all that they depend on, each unpacked in a folder of its own, by name."""
    suite = machine_suite()
    apt = [
        *private_apt(work, run),
        "-oDir::State::status=/dev/null",  # as where nothing is installed
        "-oDebug::NoLocking=1",
        "-oAPT::Install-Recommends=false",
        f"-oAPT::Default-Release={suite}",
    ]
    run(["apt-get", *apt, "-qq", "-y", "--download-only", "install", *_PACKAGES])
    trees = {}
    for deb in sorted(_debs(work).glob("*.deb")):
        name = deb.name.partition("_")[0]
        trees[name] = work / "trees" / name
        trees[name].mkdir(parents=True)
        run(["dpkg-deb", "-x", str(deb), str(trees[name])])
    return trees


def _debs(work: Path) -> Path:
    return work / "apt/archives"


def _version(work: Path, name: str) -> str:
    """A package as the cache's file names it: `coreutils-9.1`."""
    version = one(_debs(work), f"{name}_*.deb").name.split("_")[1]
    upstream = version.replace("%3a", ":").rpartition(":")[2].rpartition("-")[0]
    return f"{name}-{upstream}"


def _programs(tree: Path) -> Sequence[Path]:
    """The program files of a package, wherever it puts them: older suites have /bin as well."""
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted(path for path in files if path.parent.name in ("bin", "sbin"))


def _take_libraries(trees: Iterable[Path], root: Path) -> None:
    """The loader and every library that the programs need, under the names that they ask for."""
    there = {
        path.name: path
        for tree in trees
        for path in tree.rglob("*.so.*")
        # An absolute link of a package, as the loader's name is in some, leads to this system's.
        if path.is_file() and path.resolve().is_relative_to(tree.resolve())
    }
    (root / LOADER).parent.mkdir()
    (root / _LIBRARIES).mkdir(parents=True)
    loader = Path(LOADER).name
    places = {loader: root / LOADER}
    wanted = [root / "bin/busybox", *(root / "usr/bin").iterdir(), there[loader]]
    while wanted:
        for needed in _needed(wanted.pop()) - places.keys():
            if needed not in there:
                raise GuestBuildError(f"no package has the library {needed}")
            places[needed] = root / _LIBRARIES / needed
            wanted.append(there[needed])
    for name, place in places.items():
        shutil.copy(there[name], place)  # what a link means, not the link
        place.chmod(0o755)


def _needed(path: Path) -> set[str]:
    image = elf.read(bytes(path))
    if image is None:
        raise GuestBuildError(f"{path} is no program and no library")
    return {name.decode() for name in image.needed}
