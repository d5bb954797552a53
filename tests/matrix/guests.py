"""The guest roots that the tests and the demo mount: built once each, then unpacked from a cache.

| kind        | loader                         | programs                                          |
| ----------- | ------------------------------ | ------------------------------------------------- |
| musl        | /lib/ld-musl-x86_64.so.1       | busybox and GNU coreutils, compiled               |
| musl-static | none                           | the same, linked statically                       |
| glibc       | /lib64/ld-linux-x86-64.so.2    | Debian's own busybox and coreutils, its libraries |

Each has the same names: GNU's programs are the files in /usr/bin, /bin has them and busybox's
applets. None has ``/etc/resolv.conf``, so that a guest which sees one has seen the host's.

``python -m tests.matrix.guests DEST`` unpacks a root into DEST; without DEST it builds all of them,
or the one of ``--kind KIND``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.matrix.building import LOADER, GuestBuildError, exit_status, say
from tests.matrix.glibc_guest import glibc
from tests.matrix.guest_cache import Links, Recipe, cache_dir, extract, in_cache
from tests.matrix.musl_guest import musl, musl_static

__all__ = ["KINDS", "LOADER", "GuestBuildError", "Links", "cache_dir", "ensure", "unpack"]

_RECIPES: Final[Mapping[str, Recipe]] = {
    "musl": musl,
    "musl-static": musl_static,
    "glibc": glibc,
}
KINDS: Final = tuple(_RECIPES)
"""The first one is what is meant where none is named."""


def ensure(kind: str = KINDS[0]) -> Path:
    """A guest root as a tar in the cache, built first where it is missing; see `in_cache`."""
    return in_cache(f"{kind}-guest", f"{kind} guest root", _RECIPES[kind])


def unpack(dest: Path, links: Links = "symlink", kind: str = KINDS[0]) -> None:
    """Put a guest root into the directory *dest*; *links* as `guest_cache.extract` has it."""
    extract(ensure(kind), dest, links)


def main() -> None:
    parser = argparse.ArgumentParser(prog="guests", description="Build or unpack guest roots.")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("dest", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.dest is not None:
        unpack(arguments.dest, kind=arguments.kind or KINDS[0])
        return
    for kind in [arguments.kind] if arguments.kind else KINDS:
        say(f"{kind} guest root: {ensure(kind)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
