"""What a suite of the matrix is, and what a cell gives it to work with.

A suite is a list of named items and a way to run some of them in one `Setting`: a guest root on the
cell's volume, laid over a host of its own. What came of them is a `Tally`. Nothing that a suite
makes outlives the cell: `Setting.base` is removed, mounts of `Setting.mounted` are taken away.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from tests.matrix import guests
from tests.matrix.volumes import Volume
from tests.mounts import Mount, Mounter

__all__ = ["GUESTS", "MODES", "PLACES", "VOLUMES", "Cell", "Reference", "Setting", "Suite", "Tally"]

VOLUMES: Final = ("ext4", "zfs", "zfs-formd", "exfat", "lowntfs", "caseless")
GUESTS: Final = guests.KINDS
PLACES: Final = ("sysroot", "host")
MODES: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (),
    "uncached": ("entry_timeout=0", "attr_timeout=0", "negative_timeout=0"),
    "pyfuse3": ("door=pyfuse3",),
    "passthrough": ("opens=passthrough",),
    "long": ("entry_timeout=1000", "attr_timeout=1000", "negative_timeout=1000"),
}
"""Options of a mount for each door, each way to cache and to open files."""

_COMMAND: Final = Path(sys.executable).parent / "sysroot-fs"


@attrs.frozen
class Cell:
    """One suite with one guest on one volume, working in one place, in one mode.

    An axis on which a suite does not depend is ``-``.
    """

    suite: str
    volume: str
    guest: str = "-"
    place: str = "-"
    mode: str = "-"

    @property
    def name(self) -> str:
        """What the progress lines call it."""
        return "/".join(part for part in attrs.astuple(self) if part != "-")

    @property
    def only(self) -> str:
        """What names this cell alone on the command line."""
        return ",".join(f"{k}={v}" for k, v in attrs.asdict(self).items() if v != "-")


@attrs.frozen
class Tally:
    """The items that passed; those that failed with what differed, the skipped with the reason.

    Among the failed and the skipped there may be more than items: what went wrong at the end of the
    server, calls that a volume cannot do.
    """

    passed: Collection[str] = ()
    failures: Mapping[str, Sequence[str]] = attrs.field(factory=dict)
    skipped: Mapping[str, str] = attrs.field(factory=dict)


class Reference:
    """Plain chroots on the machine's own disk, one of each guest, made when first asked for."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def root(self, guest: str) -> Path:
        """The unpacked guest; suites may leave nothing in it."""
        root = self._base / f"plain-{guest}"
        if not root.exists():
            aside = Path(tempfile.mkdtemp(prefix="unpacking-", dir=self._base)) / "root"
            guests.unpack(aside, kind=guest)
            (aside / "root").chmod(0o755)
            aside.rename(root)
            aside.parent.rmdir()
        return root


@attrs.frozen
class Setting:
    """Where a cell runs.

    `base` is a private directory on the machine's own disk that every user can enter; `volume` the
    cell's; `sysroot` lies on it and holds the guest root, or nothing where the cell has no guest;
    `host` is an empty directory underneath. `lacks` is what the volume cannot do, of `cases.NEEDS`.
    With `cut` a suite that could go on for hours does a little of everything in seconds.
    """

    cell: Cell
    base: Path
    volume: Volume
    sysroot: Path
    host: Path
    lacks: frozenset[str]
    reference: Reference
    cut: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The mount options of the cell's mode."""
        return MODES.get(self.cell.mode, ())

    def run_command(self, *options: str) -> list[str]:
        """A prefix that runs a program in the guest; *options* are those of `run`."""
        words = [str(_COMMAND), "run", "--no-tty", "--host", str(self.host), *options]
        for option in self.options:
            words += ["-o", option]
        return [*words, str(self.sysroot), "--"]

    @contextlib.contextmanager
    def mounted(self, *options: str, descriptors: int | None = None) -> Iterator[Mount]:
        """The sysroot mounted over the host, with *options* besides the mode's.

        The server may hold so many *descriptors*.

        Raises AssertionError at the end where the server has logged an error that was not
        announced (`Mount.expects`), or does not end in order; it may be killed in between.
        """
        work = Path(tempfile.mkdtemp(prefix="mount-", dir=self.base))
        work.chmod(0o755)
        mounter = Mounter(work)
        try:
            yield mounter(
                *self.options,
                *options,
                sysroot=self.sysroot,
                host=self.host,
                descriptors=descriptors,
            )
        finally:
            mounter.close()


@attrs.frozen
class Suite(ABC):
    """Named items, and how to run them in a setting.

    `guests`, `places` and `modes` are the axes on which the outcome can depend; an empty one means
    that it does not. `volumes` are those that it is about.
    """

    name: str
    volumes: tuple[str, ...] = VOLUMES
    guests: tuple[str, ...] = GUESTS
    places: tuple[str, ...] = PLACES
    modes: tuple[str, ...] = tuple(MODES)

    @abstractmethod
    def items(self) -> Sequence[str]:
        """The names of what can be run, in order; each by itself means the same."""

    def cut_items(self) -> Sequence[str]:
        """Those of the items that belong to the cut: all, where a suite does not say otherwise."""
        return self.items()

    def needs(self, item: str) -> frozenset[str]:
        """What the sysroot's volume has to be able to do for an item, of `cases.NEEDS`.

        Nothing, where a suite does not say otherwise; the cut deals items out by it.
        """
        return frozenset()

    @abstractmethod
    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run some of the items; each is in the tally once, or the table takes it for failed.

        What breaks off is a failure of the items that were not run, never an exception; nothing is
        left in the setting's host and sysroot but the guest.
        """

    def cells(self) -> list[Cell]:
        """Every cell of this suite."""
        return [
            Cell(self.name, volume, guest, place, mode)
            for volume in self.volumes
            for guest in self.guests or ("-",)
            for place in self.places or ("-",)
            for mode in self.modes or ("-",)
        ]
