"""Making a directory that the kernel does not take for a removed one.

A volume served by FUSE may give a new directory the number of a removed one; lowntfs-3g does so at
once. Where somebody still holds that (it is his working directory, or he has a descriptor of it or
of what was in it), the kernel finds its inode by the number. Then the new directory counts as
removed for as long as the kernel remembers it: nothing is found in it, and nothing can be made.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from sidecar import linux
from sidecar.look import is_remote

MOST: Final = 64
"""After so many directories that count as removed the next one is taken as it is."""
_ASIDE: Final = b".fuse_hidden"
"""How names begin that FUSE volumes have for what is removed already: no guest sees them."""
_NOBODYS: Final = b".sysroot-fs-nobody"
_HERE: Final = linux.AT_EMPTY_PATH | linux.AT_STATX_DONT_SYNC


def make_directory(dirfd: int, name: bytes, mode: int) -> None:
    """Make the directory *name*, exclusively. Raises OSError as mkdir(2) does.

    One that counts as removed is put aside, so that the next one gets another number.
    """
    # Before: where it fails nothing is to be made.
    remote = is_remote(linux.statx(dirfd, b"", _HERE))
    os.mkdir(name, mode, dir_fd=dirfd)
    aside: list[bytes] = []
    try:
        while remote and len(aside) < MOST and counts_as_removed(dirfd, name):
            other = _ASIDE + os.urandom(8).hex().encode()
            try:
                os.rename(name, other, src_dir_fd=dirfd, dst_dir_fd=dirfd)
            except OSError:
                # It is there, such as it is.
                break
            aside.append(other)
            os.mkdir(name, mode, dir_fd=dirfd)
    finally:
        for other in aside:
            with suppress(OSError):
                os.rmdir(other, dir_fd=dirfd)


def counts_as_removed(dirfd: int, name: bytes) -> bool:
    """Whether the kernel takes the directory *name*, which is there, for a removed one.

    It is asked for a link to a directory, which is never made; but where the new name would be in
    a removed one, the refusal is another.
    """
    try:
        os.link(b".", name + b"/" + _NOBODYS, src_dir_fd=dirfd, dst_dir_fd=dirfd)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False
