"""What every guest root has, whatever its programs are linked with: folders, users, names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

LIBEXEC: Final = "usr/libexec"
"""Where coreutils has the library of stdbuf."""

_FOLDERS: Final = ("bin", "usr/bin", "etc", "tmp", "root", "proc", "sys", "dev")
_PASSWD: Final = """\
root:x:0:0:guest root:/root:/bin/sh
guest:x:1000:1000:guest user:/tmp:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP: Final = "root:x:0:\nguest:x:1000:\nnogroup:x:65534:\n"


def make_skeleton(root: Path) -> None:
    """The folders, and /etc with users and groups, in the empty *root*."""
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    (root / "etc/passwd").write_text(_PASSWD)
    (root / "etc/group").write_text(_GROUP)


def link_names(root: Path, applets: Iterable[str]) -> None:
    """Give every program a name in /bin: GNU's where there is one, else busybox's applet.

    GNU's are the files in /usr/bin. Without /bin/ls here a guest that asks for it would be given
    the host's, rightly.
    """
    gnu = [path.name for path in (root / "usr/bin").iterdir() if not path.is_symlink()]
    for name in gnu:
        (root / "bin" / name).symlink_to(f"../usr/bin/{name}")
    for name in applets:
        if name not in gnu and name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
