"""The musl guest root that the tests and the demo mount: built once, then unpacked from a cache.

Every program in it is linked dynamically against the root's own musl loader, so none of them can
start unless the sysroot is in effect. The root is made of the musl loader, a dynamic busybox and
a dynamic GNU coreutils; it has no ``/etc/resolv.conf``, so that a guest which sees one has seen
the host's.

The compiler is a musl-gcc private to the build: installing the distribution's ``musl-tools`` would
put a musl loader into the host's ``/lib``, where a guest program started *without* the sysroot in
effect would run on it and no test could tell. The machine's package lists are not touched either:
sources come through lists of our own, derived from the machine's.

``python -m tests.matrix.guests DEST`` unpacks the root into DEST; without DEST it only builds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal

import attrs

Links = Literal["symlink", "hard", "copy"]

LOADER: Final = "lib/ld-musl-x86_64.so.1"
#: 1.2.3 lacks DT_RELR and crashes C++ programs at start.
MUSL_WANTED: Final = "1.2.5"
#: The Debian suite that has it, for machines whose own suite is older.
MUSL_SUITE: Final = "trixie"
#: All files of a source tree get this date: patched files are newer than what was generated from
#: them, and automake would run.
ONE_DATE: Final = 1_700_000_000

_PASSWD: Final = """\
root:x:0:0:guest root:/root:/bin/sh
guest:x:1000:1000:guest user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP: Final = "root:x:0:\nguest:x:1000:\nnogroup:x:65534:\n"

# What musl's own musl-gcc.specs says, with the loader taken from the environment: configure runs
# the programs that it links, and they have to start on a host that has no musl.
_SPECS: Final = """\
%rename cpp_options old_cpp_options
*cpp_options:
-nostdinc -isystem {include} -isystem include%s %(old_cpp_options)

*cc1:
%(cc1_cpu) -nostdinc -isystem {include} -isystem include%s

*link_libgcc:
-L{lib} -L .%s

*libgcc:
libgcc.a%s %:if-exists(libgcc_eh.a%s)

*startfile:
%{{!shared: {lib}/Scrt1.o}} {lib}/crti.o crtbeginS.o%s

*endfile:
crtendS.o%s {lib}/crtn.o

*link:
-nostdlib %{{shared:-shared}} %{{static:-static}} %{{rdynamic:-export-dynamic}}

*esp_link:


*esp_options:


*esp_cpp_options:


"""

# Applets that do not compile against musl or against newer kernel headers, and ones that would
# need libraries the guest has not.
_BUSYBOX_OFF: Final = (
    "STATIC",
    "PAM",
    "TC",
    "SELINUX",
    "FEATURE_HAVE_RPC",
    "FEATURE_INETD_RPC",
    "FEATURE_MOUNT_NFS",
)


class GuestBuildError(Exception):
    """The guest root could not be built; the message says at which step and where the log is."""


@attrs.frozen
class _Toolchain:
    """musl's files as unpacked, and the compiler made of them."""

    version: str
    loader: Path
    compiler: Path


def cache_dir() -> Path:
    """The project's cache folder, outside the checkout; created where it is missing."""
    chosen = os.environ.get("SYSROOT_FS_CACHE")
    if not chosen:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        chosen = str(Path(base) / "sysroot-fs")
    path = Path(chosen).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def ensure() -> Path:
    """The guest root as a tar in the cache, built first where it is missing.

    Safe against a second process (which waits) and against being killed (the tar is renamed into
    place when it is whole). The file's name holds the versions. Raises `GuestBuildError`.
    """
    cache = cache_dir()
    key = _key()
    with open(cache / "guest.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is building the guest root: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        found = sorted(cache.glob(f"guest-*-{key}.tar"))
        if found:
            return found[0]
        for left in cache.glob("build-*"):  # of a killed build: whoever holds the lock owns them
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as work:
            return _build(Path(work), cache, key)


def unpack(dest: Path, links: Links = "symlink") -> None:
    """Put the guest root into the directory `dest`, which must exist or be creatable.

    `links` says what the volume below `dest` can hold: symbolic links as they are, hard links in
    their place, or neither (exfat) - then a name of busybox becomes a two-line script, for 400
    copies would be 300 MB.
    """
    dest.mkdir(parents=True, exist_ok=True)
    with tarfile.open(ensure()) as tar:
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
    assert content is not None, f"{member.name}: the guest tar holds files, folders and links only"
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


# --- building -------------------------------------------------------------------------------


def _key() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(f"{MUSL_WANTED} {_codename()} {os.uname().machine}".encode())
    return digest.hexdigest()[:12]


def _build(work: Path, cache: Path, key: str) -> Path:
    if os.uname().machine != "x86_64":
        raise GuestBuildError("the guest root can be built on x86_64 only")
    for tool in ("apt-get", "dpkg-deb", "dpkg-source", "gcc", "make"):
        if shutil.which(tool) is None:
            raise GuestBuildError(f"building the guest root needs {tool}: run `make setup`")
    began = time.monotonic()
    _say("building the guest root (once; 2 to 4 minutes)")
    log = cache / "guest-build.log"
    log.write_bytes(b"")
    run = _Runner(log)

    _say("  package lists of our own: deb-src and musl")
    apt = _private_apt(work, run)
    tools = _toolchain(work, run, apt)
    _say(f"  musl {tools.version}; sources of busybox and coreutils")
    sources = work / "src"
    sources.mkdir()
    # dpkg-source refuses to unpack signed sources it cannot verify only when asked to; apt has
    # verified them by the suite's signed lists already.
    run(["apt-get", *apt, "-qq", "--only-source", "source", "busybox", "coreutils"], cwd=sources)
    busybox, coreutils = (_one(sources, f"{name}-[0-9]*/") for name in ("busybox", "coreutils"))
    for tree in (busybox, coreutils):
        _set_dates(tree)

    _say("  compiling busybox and coreutils")
    env = {**os.environ, "LC_ALL": "C", "GUEST_LOADER": f"/{LOADER}"}
    root = work / "root"
    _skeleton(root, tools)
    with ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(_build_busybox, busybox, root, tools, run, env),
            pool.submit(_build_coreutils, coreutils, root, tools, run, env),
        ]
        for build in builds:
            build.result()
    _link_names(root, tools, run)
    _prove(root, tools, run)

    versions = f"musl{tools.version}-{busybox.name}-{coreutils.name}"
    half = work / "guest.tar"
    with tarfile.open(half, "w") as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root).as_posix(), recursive=False, filter=_as_root)
    final = cache / f"guest-{versions}-{key}.tar"
    half.rename(final)
    for stale in cache.glob("guest-*.tar"):
        if stale != final:
            stale.unlink()
    _say(f"  guest root ready: {versions}, {time.monotonic() - began:.0f} s")
    return final


def _private_apt(work: Path, run: _Runner) -> list[str]:
    """apt options for lists of our own, made of the machine's suite and, for musl, a newer one."""
    codename = _codename()
    bases = []
    for line in run(["apt-get", "--print-uris", "update"]).splitlines():
        # 'URI/dists/SUITE/InRelease' FILE SIZE; the security suite's sources answer 404
        found = re.match(r"'([^']+?)/dists/([^/']+)/(?:In)?Release", line)
        if found and found[2] == codename:
            bases.append(found[1])
    if not bases:
        raise GuestBuildError(
            f"apt has no source for the suite {codename!r}: add it to the machine's sources"
        )
    apt = work / "apt"
    for folder in ("parts", "lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    options = [
        "-oDir::Etc::SourceList=/dev/null",
        f"-oDir::Etc::SourceParts={apt}/parts",
        f"-oDir::State::Lists={apt}/lists",
        f"-oDir::Cache::Archives={apt}/archives",
        "-oDir::Cache::pkgcache=",
        "-oDir::Cache::srcpkgcache=",
        "-oAcquire::Languages=none",
        "-oAPT::Sandbox::User=",  # the unprivileged user cannot reach into a private folder
    ]

    def write(name: str, types: str, suite: str) -> None:
        keyring = next(Path("/usr/share/keyrings").glob("*-archive-keyring.*"), None)
        signed = f"Signed-By: {keyring}\n" if keyring else ""
        (apt / "parts" / f"{name}.sources").write_text(
            f"Types: {types}\nURIs: {bases[0]}\nSuites: {suite}\nComponents: main\n{signed}"
        )

    write("own", "deb deb-src", codename)
    if codename != MUSL_SUITE:
        write("musl", "deb", MUSL_SUITE)
        try:
            run(["apt-get", *options, "-qq", "update"])
            return options
        except GuestBuildError:
            _say(f"  the suite {MUSL_SUITE} is not to be had here: taking this machine's own musl")
            (apt / "parts/musl.sources").unlink()
    run(["apt-get", *options, "-qq", "update"])
    return options


def _toolchain(work: Path, run: _Runner, apt: Sequence[str]) -> _Toolchain:
    tree = work / "musl"
    debs = work / "debs"
    debs.mkdir()
    run(["apt-get", *apt, "-qq", "download", "musl", "musl-dev"], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg-deb", "-x", str(deb), str(tree)])
    version = re.split(r"[-+]", _one(debs, "musl_*.deb").name.removeprefix("musl_"))[0]
    if version != MUSL_WANTED:
        _say(f"  note: musl {version} instead of {MUSL_WANTED}; older ones cannot run C++ guests")

    include, lib = (tree / "usr" / folder / "x86_64-linux-musl" for folder in ("include", "lib"))
    loader = lib / "libc.so"
    if loader.is_symlink():  # which of the two names is the real file changed between versions
        loader = _one(tree, "**/ld-musl-x86_64.so.1")

    headers = work / "kernel-headers"
    headers.mkdir()
    for name in ("linux", "asm-generic", "mtd", "x86_64-linux-gnu/asm"):
        (headers / Path(name).name).symlink_to(Path("/usr/include") / name)
    specs = work / "musl-gcc.specs"
    specs.write_text(_SPECS.format(include=include, lib=lib))
    compiler = work / "musl-gcc"
    compiler.write_text(
        f'#!/bin/sh\nexec gcc "$@" -specs {specs} -idirafter {headers} '
        f'-Wl,-dynamic-linker,"${{GUEST_LOADER:?}}"\n'
    )
    compiler.chmod(0o755)
    return _Toolchain(version, loader, compiler)


def _build_busybox(
    tree: Path, root: Path, tools: _Toolchain, run: _Runner, env: Mapping[str, str]
) -> None:
    run(["make", "defconfig"], cwd=tree, env=env)
    config = tree / ".config"
    text = config.read_text()
    for name in _BUSYBOX_OFF:
        text = re.sub(rf"^CONFIG_{name}=y$", f"# CONFIG_{name} is not set", text, flags=re.M)
    config.write_text(text)
    run(["make", "-j2", f"CC={tools.compiler}", "busybox"], cwd=tree, env=env)
    shutil.copy(tree / "busybox", root / "bin/busybox")


def _build_coreutils(
    tree: Path, root: Path, tools: _Toolchain, run: _Runner, env: Mapping[str, str]
) -> None:
    early = {**env, "GUEST_LOADER": str(tools.loader), "FORCE_UNSAFE_CONFIGURE": "1"}
    configure = [
        "./configure",
        "--quiet",
        f"CC={tools.compiler}",
        "--prefix=/usr",
        "--disable-nls",
        "--disable-dependency-tracking",
        "--without-selinux",
        "--without-openssl",
        "--disable-libcap",
        "--enable-no-install-program=stdbuf",  # its library needs the installed libexec folder
        "--enable-install-program=arch,hostname",
    ]
    run(configure, cwd=tree, env=early)
    # The generator runs during the build, so it is linked for the loader in the build tree.
    run(["make", "-j2", "src/make-prime-list"], cwd=tree, env=early)
    # No man pages: help2man would run the programs, which cannot start outside the sysroot.
    place = tree / "placed"
    make = ["make", "-j2", "SUBDIRS=.", "MANS=", "man1_MANS="]
    run([*make, "all"], cwd=tree, env=env)
    # Not with its own `install`, which cannot start outside the sysroot either.
    own = ["INSTALL=install", "INSTALL_PROGRAM=install", "cu_install_program=install"]
    run([*make, *own, "install-exec", f"DESTDIR={place}"], cwd=tree, env=env)
    for program in sorted((place / "usr/bin").iterdir()):
        run(["strip", str(program)])
        shutil.copy(program, root / "usr/bin" / program.name)


def _skeleton(root: Path, tools: _Toolchain) -> None:
    for folder in ("bin", "lib", "usr/bin", "etc", "tmp", "root", "proc", "sys", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    shutil.copy(tools.loader, root / LOADER)
    (root / LOADER).chmod(0o755)
    (root / "lib/libc.musl-x86_64.so.1").symlink_to(Path(LOADER).name)


def _link_names(root: Path, tools: _Toolchain, run: _Runner) -> None:
    """Give every program a name in /bin: GNU's where there is one, else busybox's applet.

    Without /bin/ls here a guest that asks for it would be given the host's, rightly.
    """
    names = run([str(tools.loader), str(root / "bin/busybox"), "--list"]).split()
    gnu = [path.name for path in (root / "usr/bin").iterdir()]
    for name in gnu:
        (root / "bin" / name).symlink_to(f"../usr/bin/{name}")
    for name in names:
        if name not in gnu and name != "busybox":
            (root / "bin" / name).symlink_to("busybox")


def _prove(root: Path, tools: _Toolchain, run: _Runner) -> None:
    """Start what was built, on the loader that was built for, before the cache is given it."""
    for program in ("bin/busybox", "usr/bin/ls"):
        binary = root / program
        if f"/{LOADER}\0".encode() not in binary.read_bytes():
            raise GuestBuildError(f"{program} asks for another loader than /{LOADER}")
        run([str(tools.loader), str(binary), "--help"])


@attrs.frozen
class _Runner:
    """Runs a step, its output in the log; a failure is one sentence that names the log."""

    log: Path

    def __call__(
        self, command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            done = subprocess.run(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                check=False,
            )
            log.write(done.stdout)
        if done.returncode:
            what = " ".join(Path(word).name for word in command[:2])
            raise GuestBuildError(f"the guest root: {what} failed, see the end of {self.log}")
        return done.stdout.decode(errors="replace")


def _set_dates(tree: Path) -> None:
    for path in _walk(tree):
        os.utime(path, (ONE_DATE, ONE_DATE), follow_symlinks=False)


def _walk(tree: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(tree):
        yield from (Path(folder, name) for name in folders + files)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = ONE_DATE
    return member


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise GuestBuildError(f"{len(found)} matches of {pattern} below {folder}: expected one")
    return found[0]


def _codename() -> str:
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return ""
    found = re.search(r"^VERSION_CODENAME=\"?(\w+)", text, re.M)
    return found[1] if found else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    try:
        if len(sys.argv) > 1:
            unpack(Path(sys.argv[1]))
        else:
            _say(f"guest root: {ensure()}")
    except GuestBuildError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
