"""What `sidecar.check` finds: the words for it, and where it is noted down."""

from __future__ import annotations

from enum import Enum

from attrs import define, field, frozen

from sidecar.listings import Directory

__all__ = ["Finding", "Mend", "Name", "Page", "Severity", "What", "in_small"]


class What(Enum):
    """The kind of a finding, as programs are told."""

    COLLISION = "collision"
    REFUSED = "refused"
    ILL_FORMED = "ill-formed"
    TOO_LONG = "too-long"
    NOT_CANONICAL = "not-canonical"
    STORED_TWICE = "stored-twice"
    ROW_WITHOUT_OBJECT = "row-without-object"
    TOKEN_WITHOUT_ROW = "token-without-row"
    SHARED_TOKEN = "shared-token"
    DAMAGED_INDEX = "damaged-index"
    EMPTY_INDEX = "empty-index"
    LEFT_INDEX = "left-index"
    LEFT_PROBE = "left-probe"
    OPEN_FILE = "open-file"
    UNREADABLE = "unreadable"
    OTHER_MOUNT = "other-mount"


class Severity(Enum):
    """How bad it is. Notes are no findings that count."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Mend(Enum):
    """What `sidecar.mending` does about a finding; the value is how people read it."""

    DROP_ROW = "the row is dropped"
    REMOVE_TEMPORARY = "it is removed"
    REMOVE_PROBE = "it is removed, with the empty files in it"
    REMOVE_EMPTY_INDEX = "the empty file is removed"


@frozen(slots=True, order=True)
class Name:
    """A name as the guest has it and as it is stored."""

    guest: bytes
    stored: bytes


@frozen(slots=True, kw_only=True)
class Finding:
    """One thing that was found.

    `directory` is a guest path and `stored_directory` the same by stored names. `kinds` are those
    of `sidecar.kinds` that it is about. `means` is one sentence, `advice` what a person can do (or
    nothing), `mend` what repair would do, None where it would leave it alone. `number` is the row
    of an index file, from 1.
    """

    what: What
    severity: Severity
    directory: bytes
    stored_directory: bytes
    names: tuple[Name, ...] = ()
    kinds: tuple[str, ...] = ()
    means: str
    advice: str = ""
    mend: Mend | None = None
    number: int | None = None
    mergeable: bool = False


@define(slots=True)
class Page:
    """The findings in one directory, and what was learnt about its entries on the way."""

    directory: Directory
    found: list[Finding] = field(factory=list)
    mapped: dict[bytes, bytes] = field(factory=dict)
    """Stored name -> guest name, where they differ."""
    hidden: set[bytes] = field(factory=set)
    """Stored names that no guest sees."""

    def add(self, what: What, severity: Severity, means: str, *names: Name, **more: object) -> None:
        self.found.append(
            Finding(
                what=what,
                severity=severity,
                directory=self.directory.guest_path(),
                stored_directory=self.directory.stored_path(),
                names=tuple(sorted(names)),
                means=means,
                **more,  # type: ignore[arg-type]
            )
        )

    def unreadable(self, error: OSError, *names: Name, how: str = "cannot be read") -> None:
        """Note that something could not be read, and go on."""
        text = error.strerror or str(error)
        self.add(What.UNREADABLE, Severity.ERROR, f"{how}: {in_small(text)}", *names)


def in_small(text: str) -> str:
    """*text* as it reads in the middle of a sentence."""
    return text[:1].lower() + text[1:]
