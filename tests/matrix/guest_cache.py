"""Guests that are built once: packed into a cache outside the checkout, unpacked for every test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tests.matrix.building import ONE_DATE, GuestBuildError, Runner, machine_suite, say
from tests.matrix.recipe_key import recipe_key

Links = Literal["symlink", "hard", "copy"]

# A recipe fills an empty folder with what is to be packed and says which versions it holds; its
# other folder is for work. Both are gone afterwards.
Recipe = Callable[[Path, Path, Runner], str]


def cache_dir() -> Path:
    """The project's cache folder, outside the checkout; created where it is missing."""
    chosen = os.environ.get("SYSROOT_FS_CACHE")
    if not chosen:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        chosen = str(Path(base) / "sysroot-fs")
    path = Path(chosen).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def in_cache(name: str, title: str, recipe: Recipe, *also: bytes) -> Path:
    """What *recipe* makes as a tar in the cache, made first where it is missing.

    Safe against a second process (which waits) and against being killed (the tar is renamed into
    place when it is whole). The tar is made anew when the recipe or *also* changes. Raises
    `GuestBuildError`.
    """
    cache = cache_dir()
    machine = f"{machine_suite()} {os.uname().machine}".encode()
    key = recipe_key(recipe, machine, *also)
    with open(cache / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is building the {title}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        found = sorted(cache.glob(f"{name}-*-{key}.tar"))
        if found:
            return found[0]
        for left in cache.glob(f"{name}-build-*"):  # whoever holds the lock owns a killed build's
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=f"{name}-build-", dir=cache) as work:
            half, versions = _cook(name, title, recipe, Path(work), cache)
            final = cache / f"{name}-{versions}-{key}.tar"
            half.rename(final)
        for stale in cache.glob(f"{name}-*.tar"):
            if stale != final:
                stale.unlink()
        return final


def _cook(name: str, title: str, recipe: Recipe, work: Path, cache: Path) -> tuple[Path, str]:
    if os.uname().machine != "x86_64":
        raise GuestBuildError(f"the {title} can be built on x86_64 only")
    for tool in ("apt-get", "dpkg-deb", "dpkg-source", "gcc", "make", "strip"):
        if shutil.which(tool) is None:
            raise GuestBuildError(f"building the {title} needs {tool}: run `make setup`")
    began = time.monotonic()
    say(f"building the {title} (once; 1 to 4 minutes)")
    log = cache / f"{name}-build.log"
    log.write_bytes(b"")
    root, scratch = work / "root", work / "work"
    root.mkdir()
    scratch.mkdir()
    versions = recipe(root, scratch, Runner(log))
    half = work / "half.tar"
    with tarfile.open(half, "w") as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root).as_posix(), recursive=False, filter=_as_root)
    say(f"  {title} ready: {versions}, {time.monotonic() - began:.0f} s")
    return half, versions


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = ONE_DATE
    return member


def extract(packed: Path, dest: Path, links: Links) -> None:
    """Put what `in_cache` gave into the directory *dest*, which must exist or be creatable.

    *links* says what the volume below *dest* can hold: symbolic links as they are, hard links in
    their place, or neither (exfat) - then a name of busybox becomes a two-line script, for 400
    copies would be 300 MB.
    """
    dest.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed) as tar:
        if links == "symlink":
            # Modes and the sticky bit as they are; early 3.11 has no filters and needs none.
            tar.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
            tar.extractall(dest)
            return
        late: list[tarfile.TarInfo] = []
        for member in tar:
            if member.issym():
                late.append(member)
            else:
                _extract_plain(tar, member, dest)
        for member in late:
            _extract_link(member, dest, links)


def _extract_plain(tar: tarfile.TarFile, member: tarfile.TarInfo, dest: Path) -> None:
    target = dest / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member)
    assert content is not None, f"{member.name}: a guest tar holds files, folders and links only"
    with content, open(target, "wb") as out:
        shutil.copyfileobj(content, out)
    with contextlib.suppress(PermissionError):  # exfat has no modes, and everything may run
        target.chmod(member.mode)


def _extract_link(member: tarfile.TarInfo, dest: Path, links: Links) -> None:
    path = dest / member.name
    target = Path(os.path.normpath(path.parent / member.linkname))
    if links == "hard":
        os.link(target, path)
    elif path.parent.name == "lib" or path.name == "sh":
        shutil.copyfile(target, path)
        with contextlib.suppress(PermissionError):
            path.chmod(0o755)
    else:
        inside = "/" + str(target.relative_to(dest))
        called = f"{inside} {path.name}" if target.name == "busybox" else inside
        path.write_text(f'#!/bin/sh\nexec {called} "$@"\n')
        with contextlib.suppress(PermissionError):
            path.chmod(0o755)
