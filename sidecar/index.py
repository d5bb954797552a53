"""One directory's index: which guest name is stored under which name.

An index is what was read of a directory on a volume that is not transparent. It is a cache of
*spellings* and never of existence: every answer is checked against the volume, so a stale index
can cost a second look, not a wrong answer that lasts. It is read again when the directory's times
moved, and, while these are too young to prove anything (volumes count in steps of up to two
seconds), at least once a second.

With a fold key (the fold policy, `docs/CONTRACT.md` section 6) it also says which entry a name
means in another spelling, and that none does: then the directory is not asked at all for as long
as `BELIEF_NS`, because misses are what compilers and games ask for most.

Names that no escape can hold are in the directory's index file (`sidecar.index_file`). A row is
written before its object and taken away after it.
"""

from __future__ import annotations

import bisect
import errno
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Final, TypeVar
from unicodedata import normalize

from attrs import define, field, frozen

from sidecar import escape, index_file, linux
from sidecar.index_file import change_rows, rows_in
from sidecar.linux import Stat
from sidecar.look import find, is_taken
from sidecar.naming import (
    HELPER_NAMES,
    INDEX_FILE,
    INDEX_LOCK,
    Kind,
    Policy,
    candidates,
    fits,
    is_leftover,
    is_reserved,
    is_token,
    may_be_escaped,
    needs_index,
)
from sidecar.spelling import Key
from sidecar.volume import Traits

log = logging.getLogger(__name__)
T = TypeVar("T")

TRUST_NS: Final = 1_000_000_000
"""How long, in nanoseconds, an index is believed while its directory's times are young."""
QUIET_NS: Final = 3_000_000_000
"""Times older than this at the scan cannot hide a later change (exFAT counts in 2 s steps)."""
BELIEF_NS: Final = 10_000_000
"""How long, in nanoseconds, an index with a fold key is believed without asking the volume."""
CHANGES: Final = 1000
"""Up to so many names that came or went are noted one by one, more cost as much as all of them."""

# What volumes answer for a name that they cannot hold; measured in docs/VOLUMES.md.
UNSTORABLE: Final = frozenset({errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.ENOTSUP})


@frozen(slots=True)
class Entry:
    """A guest name that exists: the stored name, what that is to it, and its attributes.

    *guest* is the entry's own spelling where it was found in another.
    """

    stored: bytes
    kind: Kind
    stat: Stat
    door: bool
    guest: bytes = b""


def look(dirfd: int, name: bytes) -> tuple[Stat, bool] | None:
    """What `look.find` says of the entry *name*, or None where there is none.

    A name that the volume cannot hold is simply not there. Every other failure is raised.
    """
    try:
        return find(dirfd, name)
    except OSError as error:
        if error.errno in UNSTORABLE:
            return None
        raise


@define(slots=True)
class DirectoryIndex:
    """What is known of the spellings in one directory. Descriptors are borrowed per call.

    *key* is the fold key under which names are one, None where every spelling is a name.
    """

    traits: Traits
    policy: Policy
    key: Key | None = None
    names: set[bytes] = field(factory=set)
    rows: dict[bytes, bytes] = field(factory=dict)
    _claims: set[bytes] = field(factory=set)
    _slots: Counter[bytes] | None = None
    _stamp: tuple[int, int] | None = None
    _scanned: int = 0
    _quiet: bool = False
    retired: bool = False
    """No longer the one that is kept of this directory: it must be asked for anew."""
    _believed: int = 0
    _folded: dict[bytes, list[tuple[bytes, bytes]]] | None = None

    # --- reading -----------------------------------------------------------------------------

    def _valid(self, dirfd: int) -> bool:
        if self._stamp is None:
            return False
        now = os.fstat(dirfd)
        if (now.st_mtime_ns, now.st_ctime_ns) != self._stamp:
            return False
        return self._quiet or time.monotonic_ns() - self._scanned < TRUST_NS

    def scan(self, dirfd: int) -> None:
        """Read the directory, and its index file where it has one.

        Raises OSError as the volume does, `DamagedIndex` for a malformed index file.
        """
        self._stamp = None
        before = os.fstat(dirfd)
        reading = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dirfd)
        try:
            with os.scandir(reading) as entries:
                names = {os.fsencode(entry.name) for entry in entries}
        finally:
            os.close(reading)
        rows = rows_in(dirfd) if INDEX_FILE in names and self._serves else {}
        changed = names ^ self.names
        if rows != self.rows or len(changed) > CHANGES:
            self._folded = None
        self.rows, self.names = rows, names
        for stored in changed if self._folded is not None else ():
            self._note(stored, stored in names)
        self._slots = None
        self._claims.clear()
        newest = max(before.st_mtime_ns, before.st_ctime_ns)
        self._quiet = time.time_ns() - newest > QUIET_NS + self.traits.time_step_ns
        self._stamp = (before.st_mtime_ns, before.st_ctime_ns)
        self._scanned = time.monotonic_ns()

    @property
    def _serves(self) -> bool:
        # Under the portable policy a volume that holds every escape has no use for an index
        # file, and a guest's file of that name is an ordinary one there (frozen vector).
        return self.policy is Policy.NATURAL or self.traits.name_unit == "bytes"

    def refresh(self, dirfd: int) -> None:
        """Scan the directory unless what is known still holds."""
        if self.key is not None and time.monotonic_ns() < self._believed:
            return
        if not self._valid(dirfd):
            self.scan(dirfd)
        self._believed = time.monotonic_ns() + BELIEF_NS

    def doubt(self) -> None:
        """Believe nothing without a look: something depends on the next answer."""
        self._believed = 0

    def distrust(self) -> None:
        """Somebody else has changed the directory: its times need not say so."""
        self._stamp, self._believed = None, 0

    def guest_of(self, stored: bytes) -> bytes | None:
        """The guest name of the entry *stored* as of the last scan, None where it has none."""
        tokens = {held: name for name, held in self.rows.items()} if is_token(stored) else {}
        return self._guest(stored, tokens)

    def _spelled(self, dirfd: int, stored: bytes) -> bool:
        """Whether an entry that answers to *stored* is spelled exactly so.

        If not, and if the volume has such an entry at all, *stored* is among the claims afterwards.
        """
        if not self.traits.needs_spelling or stored in self.names:
            return True
        if stored in self._claims:
            return False
        self.scan(dirfd)
        if stored in self.names:
            return True
        if is_taken(dirfd, stored):
            self._claims.add(stored)
        return False

    def find(self, dirfd: int, name: bytes) -> tuple[Entry | None, bool]:
        """The entry for guest *name*, and whether its literal slot is held by another spelling.

        Order of reading: the exact literal name, the escape, the index row; with a fold key after
        these the first other spelling in byte order.
        """
        self.refresh(dirfd)
        if self.key is not None:
            entry = self._find_folded(dirfd, self.key(name), name)
            if entry is not None or not self.encodes:
                return entry, False
        return self._find_exact(dirfd, name)

    @property
    def encodes(self) -> bool:
        """Whether stored names may differ from guest names here."""
        return needs_index(self.traits, self.policy)

    def group(self, dirfd: int, name: bytes) -> list[tuple[bytes, bytes, Kind]]:
        """(guest name, stored name, what it is to *name*) of its spellings, in byte order.

        Needs a fold key. What was there at the last scan: the caller looks whether it still is.
        """
        assert self.key is not None
        self.refresh(dirfd)
        return [
            (guest, stored, self._kind(guest, stored, name))
            for guest, stored in self._spellings().get(self.key(name), ())
        ]

    def _find_folded(self, dirfd: int, key: bytes, name: bytes) -> Entry | None:
        for first_time in (True, False):
            spellings = self._spellings().get(key)
            if not spellings:
                return None
            guest, stored = next((one for one in spellings if one[0] == name), spellings[0])
            seen = look(dirfd, stored)
            if seen is not None:
                return Entry(stored, self._kind(guest, stored, name), *seen, guest)
            if first_time:
                # Gone behind our back.
                self.scan(dirfd)
        return None

    @staticmethod
    def _kind(guest: bytes, stored: bytes, name: bytes) -> Kind:
        if guest != name:
            return Kind.FOLDED
        if stored == guest:
            return Kind.LITERAL
        return Kind.TOKEN if is_token(stored) else Kind.ESCAPE

    def _spellings(self) -> dict[bytes, list[tuple[bytes, bytes]]]:
        """Fold key -> (guest name, stored name) of all that have it, in byte order."""
        if self._folded is None:
            assert self.key is not None
            self._folded = {}
            for pair in self._pairs():
                alone = [pair]
                spellings = self._folded.setdefault(self.key(pair[0]), alone)
                if spellings is not alone:
                    bisect.insort(spellings, pair)
        return self._folded

    def _find_exact(self, dirfd: int, name: bytes) -> tuple[Entry | None, bool]:
        claimed = False
        if not (is_reserved(name) and self._reserves(name)):
            seen = look(dirfd, name)
            if seen is not None:
                if self._spelled(dirfd, name):
                    return Entry(name, Kind.LITERAL, *seen), False
                claimed = name in self._claims
            elif self.traits.needs_spelling:
                claimed = self._slot_taken(dirfd, name)
        if may_be_escaped(name, self.traits):
            stored = escape.encode(name)
            seen = look(dirfd, stored)
            if seen is not None and self._spelled(dirfd, stored):
                return Entry(stored, Kind.ESCAPE, *seen), claimed
        row = self.rows.get(name)
        if row is not None:
            seen = look(dirfd, row)
            if seen is not None:
                return Entry(row, Kind.TOKEN, *seen), claimed
        return None, claimed

    def _slot(self, name: bytes) -> bytes:
        """What is sure to fold together on this volume: ASCII case, normal forms if it has them."""
        if self.traits.normalises != "no" and not name.isascii():
            name = normalize("NFD", name.decode("utf-8", "surrogateescape")).encode(
                "utf-8", "surrogateescape"
            )
        return name.lower() if self.traits.folds else name

    def _slot_taken(self, dirfd: int, name: bytes) -> bool:
        """Whether a known entry holds the slot of *name*, which the volume says is absent.

        The kernel remembers "absent" for a second or more on FUSE volumes, and does not know that
        another spelling has appeared meanwhile.
        """
        if name in self._claims:
            return True
        # What was known may be gone by now, so a claim is seen twice.
        if not self._slot_known(name):
            return False
        self.scan(dirfd)
        if not self._slot_known(name):
            return False
        self._claims.add(name)
        return True

    def _slot_known(self, name: bytes) -> bool:
        if self._slots is None:
            self._slots = Counter(map(self._slot, self.names))
        return self._slots[self._slot(name)] > 0

    def may_replace(self, dirfd: int, stored: bytes) -> bool:
        """Whether a rename to *stored*, which looks absent, could hit another spelling.

        For the reason that `_slot_taken` gives that would destroy a file, so the volume itself is
        asked. To read the directory again would say the same, and take as long as it is big.
        """
        return self.traits.needs_spelling and is_taken(dirfd, stored)

    def _reserves(self, name: bytes) -> bool:
        return self._serves or name not in HELPER_NAMES

    def listing(self, dirfd: int) -> list[tuple[bytes, bytes]]:
        """Every (guest name, stored name) of the directory, in no order."""
        self.refresh(dirfd)
        return self._pairs()

    def _pairs(self) -> list[tuple[bytes, bytes]]:
        if not self.encodes:
            return [(name, name) for name in self.names]
        tokens = {stored: name for name, stored in self.rows.items()}
        guests = ((self._guest(stored, tokens), stored) for stored in self.names)
        return [(name, stored) for name, stored in guests if name is not None]

    def _guest(self, stored: bytes, tokens: dict[bytes, bytes]) -> bytes | None:
        """The guest name of the entry *stored*, None where it has none."""
        if not self.encodes:
            return stored
        if (stored in HELPER_NAMES and self._serves) or is_leftover(stored):
            return None
        if is_token(stored):
            # A token without a row has lost its name: it is reported by `check`, never shown.
            name = tokens.get(stored)
            if name is None or escape.encode(name) in self.names:
                return None
        else:
            name = escape.decode(stored)
            if name is None:
                return stored
        # What is read first is meant where one name is stored twice.
        return name if name not in self.names or is_reserved(name) else None

    def only_helpers(self, dirfd: int) -> list[bytes] | None:
        """The helper names to remove before rmdir, or None where the guest sees an entry."""
        self.scan(dirfd)
        if self.listing(dirfd):
            return None
        return [name for name in self.names if name in HELPER_NAMES]

    def leftovers(self) -> list[bytes]:
        """Files that the volume keeps because they are open, as of the last scan.

        Not those of lowntfs, which takes them away only where they are: moved, they would stay.
        """
        return [name for name in self.names if name.startswith(b".fuse_hidden")]

    # --- naming ------------------------------------------------------------------------------

    def lock(
        self, dirfd: int, patience: float = index_file.LOCK_TIMEOUT
    ) -> AbstractContextManager[object]:
        """Hold the directory against other mounts that name something in it.

        Such volumes have no rename that refuses to replace, so check and rename are two calls;
        the lock is the kernel's and ends with the process. EBUSY after *patience* seconds.
        """
        return _Held(dirfd, patience)

    def store(
        self, dirfd: int, name: bytes, make: Callable[[bytes], T], *, exclusive: bool = True
    ) -> tuple[bytes, T]:
        """Make a new guest *name*: call *make* with the stored names that it may get, in turn.

        *make* creates exclusively (EEXIST where the slot is held). For an operation that would
        replace (a rename), pass ``exclusive=False``: the slot is then looked at first, under the
        directory's lock. The caller has seen that *name* does not exist and holds the lock.
        Returns the stored name and what *make* returned. Raises FileExistsError if no slot is
        free, otherwise the volume's own error.
        """
        last: OSError = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        for kind, stored in candidates(name, self.traits, self.policy):
            if not fits(stored, self.traits):
                last = OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                continue
            if kind is Kind.TOKEN:
                if any(row == stored and owner != name for owner, row in self.rows.items()):
                    continue
                self._write_rows(dirfd, add=(name, stored))
            try:
                if exclusive or not self._is_taken(dirfd, kind, stored):
                    made = make(stored)
                    self.added(dirfd, stored)
                    return stored, made
                goes_on = True
            except FileExistsError as error:
                # Somebody else has made it since the scan.
                self._stamp = None
                self.doubt()
                # Its traceback would hold this frame, and with it what the callers have open.
                last, goes_on = error.with_traceback(None), True
            except OSError as error:
                last = error.with_traceback(None)
                goes_on = kind is Kind.LITERAL and error.errno in UNSTORABLE
                if not goes_on:
                    # It may be there all the same: exfat-fuse refuses a fifo and leaves a file.
                    self._stamp = None
                    self.doubt()
            if kind is Kind.TOKEN:
                self._drop_row(dirfd, name)
            if not goes_on:
                break
        try:
            raise last
        finally:
            del last

    def _is_taken(self, dirfd: int, kind: Kind, stored: bytes) -> bool:
        if look(dirfd, stored) is not None:
            return True
        return kind is Kind.LITERAL and self.may_replace(dirfd, stored)

    def _drop_row(self, dirfd: int, name: bytes) -> None:
        """Drop the row of *name*, which has no object; where that fails it stays, and is harmless.

        Whether there is an object is what the guest is told, and not how its row fares.
        """
        try:
            self._write_rows(dirfd, drop=name)
        except OSError as failure:
            log.warning("a row without an object stays: %s", failure)
            self.rows.pop(name, None)

    def added(self, dirfd: int, stored: bytes) -> None:
        """Note that the entry *stored* was made through this index."""
        if self._slots is not None and stored not in self.names:
            self._slots[self._slot(stored)] += 1
        self.names.add(stored)
        self._note(stored, True)
        self._restamp(dirfd)

    def removed(self, dirfd: int, stored: bytes) -> None:
        """Note that the entry *stored* went away, and drop its row."""
        if self._slots is not None and stored in self.names:
            # Not read anew: that would make each removal as dear as the directory is big.
            self._slots[self._slot(stored)] -= 1
        self.names.discard(stored)
        self._note(stored, False)
        for name, row in list(self.rows.items()):
            if row == stored:
                self._drop_row(dirfd, name)
        self._restamp(dirfd)

    def drop_rows(self, dirfd: int, names: Iterable[bytes]) -> None:
        """Take the rows of guest *names* out of the index file.

        The caller holds the directory's lock and has seen that they have no objects.
        """
        for name in names:
            self._write_rows(dirfd, drop=name)

    def _note(self, stored: bytes, there: bool) -> None:
        """Note among the spellings that *stored* came or went, without reading all of them."""
        if self._folded is None or self.key is None:
            return
        name = None if is_token(stored) else self._guest(stored, {})
        shadow = self.encodes and name == stored and escape.encode(stored) in self.names
        if name is None or shadow or name in self.rows:
            # A token, or a name that is stored twice: it depends on others.
            self._folded = None
            return
        key, pair = self.key(name), (name, stored)
        spellings = self._folded.setdefault(key, [])
        if there and pair not in spellings:
            bisect.insort(spellings, pair)
        elif not there and pair in spellings:
            spellings.remove(pair)
        if not spellings:
            del self._folded[key]

    def _restamp(self, dirfd: int) -> None:
        # The age of the scan stays: a foreign change in the same step is found within a second.
        self._claims.clear()
        if self._stamp is not None:
            self._quiet = False
            self._stamp = None
            # What was done is done: a volume that fails now costs a scan, not the caller's success.
            with suppress(OSError):
                now = os.fstat(dirfd)
                self._stamp = (now.st_mtime_ns, now.st_ctime_ns)

    def _write_rows(
        self, dirfd: int, add: tuple[bytes, bytes] | None = None, drop: bytes | None = None
    ) -> None:
        self.rows = change_rows(dirfd, add, drop)
        self._slots = None
        if self.rows:
            self.names.update((INDEX_FILE, INDEX_LOCK))
        else:
            self.names.discard(INDEX_FILE)


class _Held:
    """A directory's own descriptor, locked: O_PATH descriptors cannot carry a lock."""

    __slots__ = ("_dirfd", "_fd", "_lock", "_patience")

    def __init__(self, dirfd: int, patience: float) -> None:
        self._dirfd, self._patience = dirfd, patience

    def __enter__(self) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._fd = os.open(b".", flags, dir_fd=self._dirfd)
        self._lock = linux.same_file_lock(self._fd, self._patience)
        try:
            self._lock.__enter__()
        except BaseException:
            os.close(self._fd)
            raise

    def __exit__(self, *exc: object) -> None:
        try:
            self._lock.__exit__(None, None, None)
        finally:
            os.close(self._fd)


@define(slots=True)
class Indexes:
    """The indexes of the directories seen lately, bounded by the number of names they hold."""

    policy: Policy
    limit: int = 500_000
    _known: OrderedDict[tuple[int, int, Key | None], DirectoryIndex] = field(factory=OrderedDict)

    def of(self, dirfd: int, traits: Traits, fold: Key | None = None) -> DirectoryIndex:
        """The index of the directory behind *dirfd*, under the key *fold*; not refreshed yet.

        Who keeps it asks again once it is `retired`.
        """
        stat = os.fstat(dirfd)
        key = (stat.st_dev, stat.st_ino, fold)
        index = self._known.get(key)
        if index is None:
            index = self._known[key] = DirectoryIndex(traits, self.policy, fold)
            self._trim()
        else:
            self._known.move_to_end(key)
        return index

    def clear(self) -> None:
        """Forget all of them."""
        for index in self._known.values():
            index.retired = True
        self._known.clear()

    def _trim(self) -> None:
        if len(self._known) % 64 and len(self._known) < 4096:
            return
        held = sum(len(index.names) for index in self._known.values())
        while len(self._known) > 1 and (held > self.limit or len(self._known) > 4096):
            _, old = self._known.popitem(last=False)
            held -= len(old.names)
            old.retired = True
