"""Damage to the on-disk format in one directory (docs/CONTRACT.md section 5).

Escapes that are not canonical, names that are stored twice, rows without objects and tokens
without rows, index files that cannot be read, and what killed processes left behind. On the way it
learns which guest name each entry stands for.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from attrs import define

from sidecar import escape
from sidecar.findings import Mend, Name, Page, Severity, What
from sidecar.index_file import DamagedIndex, parse_rows
from sidecar.leftovers import (
    is_old,
    is_probe,
    is_spent,
    may_be_rows,
    open_probe,
)
from sidecar.listings import read_regular
from sidecar.naming import (
    HELPER_NAMES,
    INDEX_FILE,
    INDEX_LOCK,
    INDEX_TEMPORARY,
    is_leftover,
    is_reserved,
    is_token,
)

__all__ = ["look_for_damage", "read_rows"]

# What could belong to the on-disk format, in any case: a volume may list another.
_SPECIAL: Final = re.compile(
    rb"\.ef[=_]|\.elfuse_case_index|\.sysroot-fs-probe-|\.fuse_hidden|\.ghost-ntfs", re.IGNORECASE
).match
_HEX: Final = re.compile(rb"[0-9a-fA-F]+\Z").match


def look_for_damage(page: Page, serves: bool, plain: bool) -> None:
    """Note damage on *page*, with the guest names that its entries stand for.

    *serves* says that index files are at work on that volume, so that an empty one is certainly
    no guest's; *plain* that the volume keeps every name.
    """
    special = [name for name in page.directory.entries if _SPECIAL(name)]
    if special:
        _Damage(page, serves, plain).entries(special)


@define(slots=True)
class _Damage:
    page: Page
    serves: bool
    plain: bool

    def entries(self, special: Sequence[bytes]) -> None:
        """Judge the entries of the on-disk format, and learn which guest names they stand for."""
        entries = self.page.directory.entries
        rows = self.index()
        tokens = {row: guest for guest, row in rows.items()}
        for stored in sorted(special):
            guest = escape.decode(stored)
            if guest is not None:
                self.page.mapped[stored] = guest
            elif stored in tokens:
                self.page.mapped[stored] = tokens[stored]
            elif is_token(stored):
                self.page.hidden.add(stored)
                self.page.add(
                    What.TOKEN_WITHOUT_ROW,
                    Severity.NOTE if self.means_itself() else Severity.WARNING,
                    "its name is lost: no row of the index file has this token, and no guest can "
                    "see it",
                    Name(stored, stored),
                    advice="look into it, and rename it to what it was",
                )
            elif _looks_like_an_escape(stored):
                self.page.add(
                    What.NOT_CANONICAL,
                    Severity.WARNING,
                    "looks like an escape and is none: it means itself",
                    Name(stored, stored),
                    advice="rename it through a mount if another name was meant",
                )
            elif is_leftover(stored):
                self.page.hidden.add(stored)
                self.page.add(
                    What.OPEN_FILE,
                    Severity.NOTE,
                    "the volume keeps a removed file under this name while it is open",
                    Name(stored, stored),
                )
            elif is_probe(stored) and entries[stored]:
                self.probe(stored)
        if INDEX_TEMPORARY in entries:
            self.temporary()
        for stored, guest in self.page.mapped.items():
            if entries[stored]:
                self.page.directory.guests[stored] = guest
        self.twice()

    def index(self) -> dict[bytes, bytes]:
        """The rows that have objects; damage is a finding, and what can be read is used."""
        entries = self.page.directory.entries
        self.page.hidden |= HELPER_NAMES & entries.keys()
        if INDEX_FILE not in entries:
            return {}
        name = Name(INDEX_FILE, INDEX_FILE)
        try:
            data, young = self.content()
        except OSError as error:
            self.page.unreadable(error, name)
            return {}
        if data is None:
            self.page.add(
                What.DAMAGED_INDEX,
                Severity.ERROR,
                "is no regular file, or far too big: its directory answers EIO",
                name,
                advice="move it away",
            )
            return {}
        if not data:
            mends = self.serves and INDEX_LOCK in entries and not young
            self.page.add(
                What.EMPTY_INDEX,
                Severity.WARNING if self.is_ours() else Severity.NOTE,
                "an index file without a row",
                name,
                advice="remove it if no guest of yours made it",
                mend=Mend.REMOVE_EMPTY_INDEX if mends else None,
            )
            return {}
        rows, damaged = read_rows(data)
        for number in damaged:
            self.page.add(
                What.DAMAGED_INDEX,
                Severity.ERROR,
                f"row {number} is malformed: its directory answers EIO",
                name,
                number=number,
                advice="take the row out with an editor; the token that it had has then no row",
            )
        return self.objects(rows, bool(damaged))

    def is_ours(self) -> bool:
        """Whether an index file is at work here, and none that somebody keeps as a file."""
        entries = self.page.directory.entries
        return self.serves or INDEX_LOCK in entries or any(map(is_token, entries))

    def means_itself(self) -> bool:
        """Whether a token is a name like others: no index is read there, or ever was."""
        entries = self.page.directory.entries
        return self.plain and INDEX_FILE not in entries and INDEX_LOCK not in entries

    def content(self) -> tuple[bytes | None, bool]:
        """The bytes of the index file, and whether it was written lately."""
        if self.page.directory.fd is None:
            return self.page.directory.contents.get(INDEX_FILE), True
        file = read_regular(self.page.directory.fd, INDEX_FILE)
        if file is None:
            return None, True
        return file.data, not is_old(file.stat, time.time_ns())

    def objects(
        self, rows: Sequence[tuple[bytes, bytes, int]], damaged: bool
    ) -> dict[bytes, bytes]:
        entries = self.page.directory.entries
        alive: dict[bytes, bytes] = {}
        owners: dict[bytes, bytes] = {}
        for guest, token, number in rows:
            if token not in entries:
                # Under the portable policy it may be a guest's own file, with a guest's tokens.
                if escape.encode(token) in entries:
                    continue
                self.page.add(
                    What.ROW_WITHOUT_OBJECT,
                    Severity.WARNING,
                    "a row of the index file without an object: harmless",
                    Name(guest, token),
                    number=number,
                    mend=Mend.DROP_ROW if self.is_ours() and not damaged else None,
                    advice="mend the damaged rows first" if damaged else "",
                )
            elif owners.setdefault(token, guest) != guest:
                self.page.add(
                    What.SHARED_TOKEN,
                    Severity.ERROR,
                    "two names of the index file have one token: they are one file to a guest",
                    Name(guest, token),
                    Name(owners[token], token),
                    number=number,
                    advice="take one of the rows out with an editor",
                )
            else:
                alive[guest] = token
        return alive

    def temporary(self) -> None:
        fd = self.page.directory.fd
        name = Name(INDEX_TEMPORARY, INDEX_TEMPORARY)
        means = "what a write of the index file left when it was killed"
        if fd is None:
            self.page.add(What.LEFT_INDEX, Severity.WARNING, means, name)
            return
        try:
            file = read_regular(fd, INDEX_TEMPORARY)
        except OSError as error:
            self.page.unreadable(error, name)
            return
        if file is None or not may_be_rows(file.data, self.serves):
            self.page.add(
                What.LEFT_INDEX,
                Severity.WARNING,
                "holds the place of a temporary index file and is none: no row can be written",
                name,
                advice="move it away",
            )
        elif is_old(file.stat, time.time_ns()):
            mend = Mend.REMOVE_TEMPORARY if self.is_ours() else None
            self.page.add(What.LEFT_INDEX, Severity.WARNING, means, name, mend=mend)
        else:
            self.page.add(What.LEFT_INDEX, Severity.NOTE, "an index file is being written", name)

    def probe(self, stored: bytes) -> None:
        fd = self.page.directory.fd
        name = Name(stored, stored)
        self.page.hidden.add(stored)
        self.page.directory.passed_over.add(stored)
        means = "the private directory of a probe that was killed"
        if fd is None:
            self.page.add(What.LEFT_PROBE, Severity.WARNING, means, name)
            return
        try:
            old = is_old(os.stat(stored, dir_fd=fd, follow_symlinks=False), time.time_ns())
            inside = open_probe(fd, stored)
            try:
                empty = is_spent(inside)
            finally:
                os.close(inside)
        except OSError:
            # Gone again: it was another process's, and alive.
            return
        if not old:
            self.page.add(
                What.LEFT_PROBE, Severity.NOTE, "a probe is at work, or was just killed", name
            )
            return
        self.page.add(
            What.LEFT_PROBE,
            Severity.WARNING,
            means if empty else f"{means}, and something that is no probe's",
            name,
            advice="" if empty else "look into it",
            mend=Mend.REMOVE_PROBE if empty else None,
        )

    def twice(self) -> None:
        """Guest names that more than one entry stands for."""
        entries = self.page.directory.entries
        claims: dict[bytes, list[bytes]] = defaultdict(list)
        for stored, guest in self.page.mapped.items():
            claims[guest].append(stored)
        for guest, stored_names in claims.items():
            literal = guest in entries and not is_reserved(guest)
            names = [Name(guest, stored) for stored in stored_names]
            if literal:
                names.append(Name(guest, guest))
            if len(names) == 1:
                continue
            meant = guest if literal else min(stored_names, key=is_token)
            how = "as it is" if literal else "by its escape"
            self.page.add(
                What.STORED_TWICE,
                Severity.WARNING,
                f"one name stored twice: the one stored {how} is meant, the other is out of reach",
                *names,
                advice="compare the two, then rename or remove the other",
            )
            for name in names:
                if name.stored != meant:
                    self.page.mapped.pop(name.stored, None)
                    self.page.hidden.add(name.stored)


def read_rows(data: bytes) -> tuple[list[tuple[bytes, bytes, int]], list[int]]:
    """(guest name, token, row number) of the good rows of an index file, and the bad numbers."""
    good: list[tuple[bytes, bytes, int]] = []
    bad: list[int] = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):
            # What follows the last line feed: nothing, or a row that was cut off.
            if line:
                bad.append(number)
            break
        try:
            rows = parse_rows(line + b"\n")
        except DamagedIndex:
            bad.append(number)
        else:
            good.extend((guest, token, number) for guest, token in rows.items())
    return good, bad


def _looks_like_an_escape(stored: bytes) -> bool:
    if stored[: len(escape.PREFIX)].lower() != escape.PREFIX:
        return False
    payload = stored[len(escape.PREFIX) :]
    if _HEX(payload):
        return True
    text = payload.decode("utf-8", "replace")
    return bool(text) and all("\u4e00" <= char < "\u5e00" for char in text)
