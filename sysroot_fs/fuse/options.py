"""What a mount is told besides its tree, whichever door it has."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class MountOptions:
    """The options of a FUSE mount under the names of mount(8).

    `source` is what /proc/mounts shows first, the type is ``fuse.`` and `subtype`; `max_read` is
    the longest read in bytes, where somebody wants one.
    """

    source: bytes
    subtype: bytes = b"sysroot"
    suid: bool = False
    dev: bool = False
    exec: bool = True
    noatime: bool = False
    read_only: bool = False
    allow_other: bool = False
    auto_unmount: bool = False
    max_read: int | None = None

    def words(self) -> list[bytes]:
        """All but names and numbers, as mount(8) and fusermount3(1) have them."""
        words = [b"suid" if self.suid else b"nosuid", b"dev" if self.dev else b"nodev"]
        if not self.exec:
            words.append(b"noexec")
        if self.noatime:
            words.append(b"noatime")
        if self.read_only:
            words.append(b"ro")
        if self.allow_other:
            words.append(b"allow_other")
        if self.auto_unmount:
            words.append(b"auto_unmount")
        return words


@frozen(kw_only=True)
class FileOptions:
    """How requests and open files are served; see `sysroot_fs.cli.options`.

    The binding's door has the choice of `awake` only.
    """

    opens: str = "auto"
    writes: str = "through"
    locks: bool = False
    uring: str = "off"
    awake: str = "auto"
