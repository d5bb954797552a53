"""The recipes of the musl guests: busybox and GNU coreutils compiled, dynamic or static.

In the dynamic one every program is linked against the root's own musl loader, so that none of them
can start unless the sysroot is in effect. The static one has no loader and no /lib at all.
"""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import attrs

from tests.matrix.building import (
    LOADER,
    Runner,
    Toolchain,
    get_sources,
    guest_environment,
    make_toolchain,
    private_apt,
    prove,
    say,
)
from tests.matrix.guest_root import LIBEXEC, link_names, make_skeleton

# Applets that do not compile against musl or against newer kernel headers, and ones that would
# need libraries the guest has not.
_BUSYBOX_OFF: Final = (
    "PAM",
    "TC",
    "SELINUX",
    "FEATURE_HAVE_RPC",
    "FEATURE_INETD_RPC",
    "FEATURE_MOUNT_NFS",
)


def musl(root: Path, work: Path, run: Runner) -> str:
    """The recipe of the dynamic guest."""
    tools, versions = _build(root, work, run, static=False)
    (root / "lib").mkdir()
    shutil.copy(tools.loader, root / LOADER)
    (root / LOADER).chmod(0o755)
    (root / "lib/libc.musl-x86_64.so.1").symlink_to(Path(LOADER).name)
    link_names(root, run([str(tools.loader), str(root / "bin/busybox"), "--list"]).split())
    for program in ("bin/busybox", "usr/bin/ls"):
        prove(root, tools, run, program, "--help")
    return versions


def musl_static(root: Path, work: Path, run: Runner) -> str:
    """The recipe of the static guest."""
    _, versions = _build(root, work, run, static=True)
    link_names(root, run([str(root / "bin/busybox"), "--list"]).split())
    run([str(root / "usr/bin/ls"), "--help"])
    return versions


def _build(root: Path, work: Path, run: Runner, static: bool) -> tuple[Toolchain, str]:
    """A root with the programs, but without names; the compiler, and the versions."""
    say("  package lists of our own: deb-src and musl")
    apt = private_apt(work, run)
    tools = make_toolchain(work, run, apt)
    say(f"  musl {tools.version}; sources of busybox and coreutils")
    busybox, coreutils = get_sources(["busybox", "coreutils"], work, run, apt)

    say("  compiling busybox and coreutils")
    make_skeleton(root)
    make = _Maker(root, tools, run, static)
    with ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(_build_busybox, busybox, make),
            pool.submit(_build_coreutils, coreutils, make),
        ]
        for build in builds:
            build.result()
    return tools, f"musl{tools.version}-{busybox.name}-{coreutils.name}"


@attrs.frozen
class _Maker:
    """What each build needs: where programs go, and how they are made."""

    root: Path
    tools: Toolchain
    run: Runner
    static: bool


def _build_busybox(tree: Path, make: _Maker) -> None:
    env = guest_environment()
    make.run(["make", "defconfig"], cwd=tree, env=env)
    config = tree / ".config"
    text = config.read_text()
    for name in _BUSYBOX_OFF:
        text = re.sub(rf"^CONFIG_{name}=y$", f"# CONFIG_{name} is not set", text, flags=re.M)
    linked = "CONFIG_STATIC=y" if make.static else "# CONFIG_STATIC is not set"
    config.write_text(re.sub(r"^.*\bCONFIG_STATIC\b.*$", linked, text, flags=re.M))
    make.run(["make", "-j2", f"CC={make.tools.compiler}", "busybox"], cwd=tree, env=env)
    shutil.copy(tree / "busybox", make.root / "bin/busybox")


def _build_coreutils(tree: Path, make: _Maker) -> None:
    env = guest_environment()
    early = {**env, "GUEST_LOADER": str(make.tools.loader), "FORCE_UNSAFE_CONFIGURE": "1"}
    configure = [
        "./configure",
        "--quiet",
        f"CC={make.tools.compiler}",
        *(["LDFLAGS=-static"] if make.static else []),
        "--prefix=/usr",
        "--disable-nls",
        "--disable-dependency-tracking",
        "--without-selinux",
        "--without-openssl",
        "--disable-libcap",
        # It works by a library that is loaded before the others, which a static program has not.
        *(["--enable-no-install-program=stdbuf"] if make.static else []),
        f"--libexecdir=/{LIBEXEC}",
        "--enable-install-program=arch,hostname",
    ]
    make.run(configure, cwd=tree, env=early)
    # The generator runs during the build, so it is linked for the loader in the build tree.
    make.run(["make", "-j2", "src/make-prime-list"], cwd=tree, env=early)
    # No man pages: help2man would run the programs, which cannot start outside the sysroot.
    place = tree / "placed"
    command = ["make", "-j2", "SUBDIRS=.", "MANS=", "man1_MANS="]
    make.run([*command, "all"], cwd=tree, env=env)
    # Not with its own `install`, which cannot start outside the sysroot either.
    own = ["INSTALL=install", "INSTALL_PROGRAM=install", "cu_install_program=install"]
    make.run([*command, *own, "install-exec", f"DESTDIR={place}"], cwd=tree, env=env)
    for folder in ("usr/bin", f"{LIBEXEC}/coreutils"):
        for file in sorted((place / folder).glob("*")):
            make.run(["strip", str(file)])
            (make.root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, make.root / folder / file.name)
