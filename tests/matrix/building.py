"""Steps that the recipes of guests are made of: sources, a compiler for musl, a log.

What is built is linked dynamically against musl, for a guest that has its own loader. The compiler
is a musl-gcc private to the build: installing the distribution's ``musl-tools`` would put a musl
loader into the host's ``/lib``, where a guest program started *without* the sysroot in effect would
run on it and no test could tell. The machine's package lists are not touched either: sources come
through lists of our own, derived from the machine's.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

LOADER: Final = "lib/ld-musl-x86_64.so.1"
#: 1.2.3 lacks DT_RELR and crashes C++ programs at start.
MUSL_WANTED: Final = "1.2.5"
#: The Debian suite that has it, for machines whose own suite is older.
MUSL_SUITE: Final = "trixie"
#: All files of a source tree get this date: patched files are newer than what was generated from
#: them, and automake would run.
ONE_DATE: Final = 1_700_000_000

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


class GuestBuildError(Exception):
    """A guest could not be built; the message says at which step and where the log is."""


def exit_status(build: Callable[[], object]) -> int:
    """The exit status of a command that does *build*; that it fails is told in a line."""
    try:
        build()
    except GuestBuildError as error:
        say(f"error: {error}")
        return 1
    return 0


@attrs.frozen
class Toolchain:
    """musl's files as unpacked, and the compiler made of them.

    What the compiler links asks for the loader that ``GUEST_LOADER`` names in its environment:
    the guest's for what is installed, `loader` for what has to run during the build.
    """

    version: str
    loader: Path
    compiler: Path


@attrs.frozen
class Runner:
    """Runs a step, its output in the log; a failure is one sentence that names the log."""

    log: Path

    def __call__(
        self, command: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        with open(self.log, "ab") as log:  # in one piece: steps run side by side
            words = " ".join(command).encode()
            log.write(b"\n$ %s\n%s%s" % (words, done.stdout, done.stderr))
        if done.returncode:
            what = " ".join(Path(word).name for word in command[:2])
            raise GuestBuildError(f"{what} failed, see near the end of {self.log}")
        return done.stdout.decode(errors="replace")


def private_apt(work: Path, run: Runner) -> list[str]:
    """apt options for lists of our own, made of the machine's suite and, for musl, a newer one."""
    codename = machine_suite()
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
            say(f"  the suite {MUSL_SUITE} is not to be had here: taking this machine's own musl")
            (apt / "parts/musl.sources").unlink()
    run(["apt-get", *options, "-qq", "update"])
    return options


def make_toolchain(work: Path, run: Runner, apt: Sequence[str]) -> Toolchain:
    tree = work / "musl"
    debs = work / "debs"
    debs.mkdir()
    run(["apt-get", *apt, "-qq", "download", "musl", "musl-dev"], cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        run(["dpkg-deb", "-x", str(deb), str(tree)])
    version = re.split(r"[-+]", one(debs, "musl_*.deb").name.removeprefix("musl_"))[0]
    if version != MUSL_WANTED:
        say(f"  note: musl {version} instead of {MUSL_WANTED}; older ones cannot run C++ guests")

    include, lib = (tree / "usr" / folder / "x86_64-linux-musl" for folder in ("include", "lib"))
    loader = lib / "libc.so"
    if loader.is_symlink():  # which of the two names is the real file changed between versions
        loader = one(tree, "**/ld-musl-x86_64.so.1")

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
    return Toolchain(version, loader, compiler)


def get_sources(names: Sequence[str], work: Path, run: Runner, apt: Sequence[str]) -> list[Path]:
    """The unpacked source trees of Debian packages, in the order of *names*, all of one date."""
    sources = work / "src"
    sources.mkdir()
    # dpkg-source refuses to unpack signed sources it cannot verify only when asked to; apt has
    # verified them by the suite's signed lists already.
    run(["apt-get", *apt, "-qq", "--only-source", "source", *names], cwd=sources)
    for folder, folders, files in os.walk(sources):
        for name in folders + files:
            os.utime(Path(folder, name), (ONE_DATE, ONE_DATE), follow_symlinks=False)
    return [one(sources, f"{name}-[0-9]*/") for name in names]


def guest_environment() -> dict[str, str]:
    """The environment in which the compiler links for the guest's loader."""
    return {**os.environ, "LC_ALL": "C", "GUEST_LOADER": f"/{LOADER}"}


def prove(root: Path, tools: Toolchain, run: Runner, program: str, *arguments: str) -> None:
    """Start what was built, on the loader that it was built for, before the cache is given it."""
    binary = root / program
    if f"/{LOADER}\0".encode() not in binary.read_bytes():
        raise GuestBuildError(f"{program} asks for another loader than /{LOADER}")
    libraries = f"{root}/lib:{root}/usr/lib"
    run([str(tools.loader), "--library-path", libraries, str(binary), *arguments])


def one(folder: Path, pattern: str) -> Path:
    """The one path below *folder* that matches *pattern*; `GuestBuildError` where it is not one."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise GuestBuildError(f"{len(found)} matches of {pattern} below {folder}: expected one")
    return found[0]


def machine_suite() -> str:
    """The name of the machine's suite, empty where it has none."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return ""
    found = re.search(r"^VERSION_CODENAME=\"?(\w+)", text, re.M)
    return found[1] if found else ""


def say(line: str) -> None:
    """Tell how far a build has come."""
    print(line, file=sys.stderr, flush=True)
