"""The musl guest root that the tests and the demo mount: built once, then unpacked from a cache.

Every program in it is linked dynamically against the root's own musl loader, so none of them can
start unless the sysroot is in effect. The root is made of the musl loader, a dynamic busybox and
a dynamic GNU coreutils; it has no ``/etc/resolv.conf``, so that a guest which sees one has seen
the host's.

``python -m tests.matrix.guests DEST`` unpacks the root into DEST; without DEST it only builds.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.matrix.building import (
    LOADER,
    GuestBuildError,
    Runner,
    Toolchain,
    get_sources,
    guest_environment,
    make_toolchain,
    private_apt,
    prove,
    say,
)
from tests.matrix.guest_cache import Links, cache_dir, extract, in_cache

__all__ = ["LOADER", "GuestBuildError", "Links", "cache_dir", "ensure", "unpack"]

_PASSWD: Final = """\
root:x:0:0:guest root:/root:/bin/sh
guest:x:1000:1000:guest user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP: Final = "root:x:0:\nguest:x:1000:\nnogroup:x:65534:\n"

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


def ensure() -> Path:
    """The guest root as a tar in the cache, built first where it is missing; see `in_cache`."""
    return in_cache("guest", "guest root", _recipe)


def unpack(dest: Path, links: Links = "symlink") -> None:
    """Put the guest root into the directory *dest*; *links* as `guest_cache.extract` has it."""
    extract(ensure(), dest, links)


# --- building -------------------------------------------------------------------------------


def _recipe(root: Path, work: Path, run: Runner) -> str:
    say("  package lists of our own: deb-src and musl")
    apt = private_apt(work, run)
    tools = make_toolchain(work, run, apt)
    say(f"  musl {tools.version}; sources of busybox and coreutils")
    busybox, coreutils = get_sources(["busybox", "coreutils"], work, run, apt)

    say("  compiling busybox and coreutils")
    env = guest_environment()
    _skeleton(root, tools)
    with ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(_build_busybox, busybox, root, tools, run, env),
            pool.submit(_build_coreutils, coreutils, root, tools, run, env),
        ]
        for build in builds:
            build.result()
    _link_names(root, tools, run)
    for program in ("bin/busybox", "usr/bin/ls"):
        prove(root, tools, run, program, "--help")
    return f"musl{tools.version}-{busybox.name}-{coreutils.name}"


def _build_busybox(
    tree: Path, root: Path, tools: Toolchain, run: Runner, env: Mapping[str, str]
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
    tree: Path, root: Path, tools: Toolchain, run: Runner, env: Mapping[str, str]
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


def _skeleton(root: Path, tools: Toolchain) -> None:
    for folder in ("bin", "lib", "usr/bin", "etc", "tmp", "root", "proc", "sys", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)
    shutil.copy(tools.loader, root / LOADER)
    (root / LOADER).chmod(0o755)
    (root / "lib/libc.musl-x86_64.so.1").symlink_to(Path(LOADER).name)


def _link_names(root: Path, tools: Toolchain, run: Runner) -> None:
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


def main() -> int:
    try:
        if len(sys.argv) > 1:
            unpack(Path(sys.argv[1]))
        else:
            say(f"guest root: {ensure()}")
    except GuestBuildError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    # Under the name that it is imported by, which the cache's key is made with.
    from tests.matrix import guests as imported

    sys.exit(imported.main())
