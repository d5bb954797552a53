"""Every mount option, declared once: `OPTIONS`.

The command line, the text after `-o`, the help, and whatever comes later (a mount helper, a
manual page, completions) all read this table. A later setting of the same option wins, as with
mount(8); the lists (`allow`, `deny`, `fold`, `exact`) add up.
"""

import argparse
import enum
import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import attrs

from sysroot_fs.cli.errors import UsageError
from sysroot_fs.text import absolute

Pair = tuple[str, str | None]
"""One option as it was written: its name, and its value where it had one."""


class Kind(enum.Enum):
    """What an option takes."""

    FLAG = "flag"
    SECONDS = "seconds"
    COUNT = "count"
    CHOICE = "choice"
    TEXT = "text"
    PATH = "path"
    PREFIXES = "prefixes"
    IGNORED = "ignored"


class Group(enum.Enum):
    """Whom an option concerns; the value is the heading in the help text."""

    TREE = "what the guest sees"
    CACHE = "how long the kernel may remember"
    MOUNT = "the mount"
    IGNORED = "accepted and ignored (they are for mount(8) and /etc/fstab)"


@attrs.frozen
class Settings:
    """What the options come to, with the defaults filled in."""

    host: bytes = b"/"
    fallback: str = "all"
    allow: tuple[bytes, ...] = ()
    deny: tuple[bytes, ...] = ()
    host_writes: str = "rw"
    listing: str = "sysroot"
    names: str = "natural"
    lookup: str = "exact"
    fold: tuple[bytes, ...] = ()
    exact: tuple[bytes, ...] = ()
    fold_key: str = "unicode"
    merge: bool = False
    read_only: bool = False
    coherence: str = "watched"
    host_coherence: str = "shared"
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    negative_timeout: float | None = None
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    exec: bool = True
    noatime: bool = False
    auto_unmount: bool = False
    max_read: int | None = None
    fsname: bytes | None = None
    subtype: bytes = b"sysroot"
    log: bytes | None = None
    door: str = "auto"
    opens: str = "auto"
    writes: str = "through"
    locks: bool = False
    uring: str = "off"
    awake: str = "auto"

    @classmethod
    def defaults(cls, privileged: bool) -> "Settings":
        """The defaults; for root those of a guest root: set-id bits, devices, every user."""
        return cls(allow_other=privileged, suid=privileged, dev=privileged)


@attrs.frozen
class Option:
    """One row of the table.

    `sets` names the field of `Settings` and `constant` what a flag puts there; a flag that sets
    nothing only says what is so anyway. `later` holds choices that are known but not built.
    `long` gives the option a long form on the command line as well.
    """

    name: str
    kind: Kind
    group: Group
    help: str
    sets: str | None = None
    constant: object = None
    default: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    long: bool = False

    @property
    def flag(self) -> str:
        """The long form: `--host-writes`."""
        return "--" + self.name.replace("_", "-")

    @property
    def meaning(self) -> str:
        """What it does, and its default where it has one."""
        return f"{self.help} (default: {self.default})" if self.default else self.help

    @property
    def usage(self) -> str:
        """How it is written after `-o`: `fallback=all|safe|none`."""
        if self.kind is Kind.CHOICE:
            return f"{self.name}={'|'.join(self.choices)}"
        return f"{self.name}={self.metavar}" if self.metavar else self.name


def _own(name: str, kind: Kind, text: str, default: str, **more: Any) -> Option:
    more.setdefault("group", Group.TREE)
    return Option(name, kind, help=text, sets=name, default=default, long=True, **more)


def _seconds(name: str, text: str) -> Option:
    return Option(
        name, Kind.SECONDS, Group.CACHE, text, sets=name, default="as coherence says",
        metavar="SECONDS",
    )  # fmt: skip


def _coherence(name: str, whose: str, default: str) -> Option:
    return _own(
        name,
        Kind.CHOICE,
        f"who else writes {whose}: nobody (exclusive), hardly anybody (watched), anybody (shared); "
        "none remembers nothing",
        default,
        choices=("exclusive", "watched", "shared", "none"),
        group=Group.CACHE,
    )


def _flag(name: str, text: str, sets: str | None = None, constant: object = True) -> Option:
    return Option(name, Kind.FLAG, Group.MOUNT, text, sets=sets, constant=constant)


def _ignored(name: str) -> Option:
    return Option(name, Kind.IGNORED, Group.IGNORED, "")


OPTIONS: Final[tuple[Option, ...]] = (
    _own("host", Kind.PATH, "the tree underneath, for what the sysroot lacks", "/", metavar="DIR"),
    _own(
        "fallback",
        Kind.CHOICE,
        "which missing paths are looked up on the host: all of them; all but the guest's own "
        "system paths (/usr, /lib, most of /etc ...); none",
        "all",
        choices=("all", "safe", "none"),
    ),
    _own(
        "allow",
        Kind.PREFIXES,
        "paths that fall back whatever `fallback` says; the longest prefix decides",
        "none",
        metavar="PREFIX[:PREFIX..]",
    ),
    _own(
        "deny",
        Kind.PREFIXES,
        "paths that never fall back; the longest prefix decides",
        "none",
        metavar="PREFIX[:PREFIX..]",
    ),
    _own(
        "host_writes",
        Kind.CHOICE,
        "whether the guest may change what it sees of the host",
        "rw",
        choices=("rw", "ro"),
        later=("cow",),
    ),
    _own(
        "listing",
        Kind.CHOICE,
        "what a directory of the sysroot lists: only what the sysroot holds, or the host's "
        "entries as well",
        "sysroot",
        choices=("sysroot", "union"),
    ),
    _own(
        "names",
        Kind.CHOICE,
        "how new names are stored: as they are wherever the volume allows it, or so that every "
        "volume reads them",
        "natural",
        choices=("natural", "portable"),
    ),
    _own(
        "lookup",
        Kind.CHOICE,
        "whether Foo and foo are two names (exact), or foo means Foo where the sysroot has that "
        "(fold)",
        "exact",
        choices=("exact", "fold"),
    ),
    _own(
        "fold",
        Kind.PREFIXES,
        "paths at and below which names are looked up in every spelling; the longest prefix "
        "decides",
        "none",
        metavar="PREFIX[:PREFIX..]",
    ),
    _own(
        "exact",
        Kind.PREFIXES,
        "paths at and below which they are not; the longest prefix decides",
        "none",
        metavar="PREFIX[:PREFIX..]",
    ),
    _own(
        "fold_key",
        Kind.CHOICE,
        "what counts as another spelling: Unicode's caseless matching, or A to Z only",
        "unicode",
        choices=("unicode", "ascii"),
    ),
    Option(
        "merge",
        Kind.FLAG,
        Group.TREE,
        "where lookups fold, directories that are spellings of one another are shown as one",
        sets="merge",
        constant=True,
        long=True,
    ),
    _coherence("coherence", "the sysroot", "watched"),
    _coherence("host_coherence", "the host's tree", "shared"),
    _seconds("entry_timeout", "a name that was found"),
    _seconds("attr_timeout", "a file's attributes"),
    _seconds("negative_timeout", "a name that was absent"),
    _flag("ro", "nothing can be changed through the mount", "read_only"),
    _flag("rw", "the opposite of ro, the default", "read_only", False),
    _flag("allow_other", "other users see the mount too; root's default", "allow_other"),
    _flag("default_permissions", "the kernel checks modes; always on"),
    _flag("suid", "set-user-id and set-group-id bits count; root's default", "suid"),
    _flag("nosuid", "they do not", "suid", False),
    _flag("dev", "device files work; root's default", "dev"),
    _flag("nodev", "they do not", "dev", False),
    _flag("exec", "programs can be started, the default", "exec"),
    _flag("noexec", "they cannot", "exec", False),
    _flag("noatime", "reading leaves access times alone", "noatime"),
    _flag("relatime", "access times as Linux keeps them by default", "noatime", False),
    _flag("auto_unmount", "unmounted when the server dies; needs fusermount3", "auto_unmount"),
    Option(
        "max_read",
        Kind.COUNT,
        Group.MOUNT,
        "the longest read (no effect with door=pyfuse3 and in `run`; a note says so)",
        sets="max_read",
        default="the kernel's",
        metavar="BYTES",
    ),
    Option(
        "fsname",
        Kind.TEXT,
        Group.MOUNT,
        "the source that /proc/mounts shows",
        sets="fsname",
        default="the path of SYSROOT",
        metavar="NAME",
    ),
    Option(
        "subtype",
        Kind.TEXT,
        Group.MOUNT,
        "the type that /proc/mounts shows after `fuse.`",
        sets="subtype",
        default="sysroot",
        metavar="NAME",
    ),
    _own(
        "log",
        Kind.PATH,
        "where a mount in the background writes its log",
        "syslog, where there is one",
        metavar="FILE",
        group=Group.MOUNT,
    ),
    _own(
        "door",
        Kind.CHOICE,
        "how requests are taken: in the kernel's own protocol, or by pyfuse3 (slower)",
        "auto: what SYSROOT_FS_DOOR says, else kernel",
        choices=("auto", "kernel", "pyfuse3"),
        group=Group.MOUNT,
    ),
    _own(
        "opens",
        Kind.CHOICE,
        "how files are opened: not at all where that changes nothing (best for many small files), "
        "asked for each time, or lent to the kernel, which reads, writes and maps them without "
        "the server (best for much data; root, Linux 6.9, local volumes: others are asked for)",
        "auto",
        choices=("auto", "ask", "passthrough"),
        group=Group.MOUNT,
    ),
    _own(
        "writes",
        Kind.CHOICE,
        "when the server gets what is written: with the call, or when the file is closed or synced "
        "or the kernel likes (root; only where coherence=exclusive says that nobody else writes, "
        "and host_coherence=exclusive or fallback=none)",
        "through",
        choices=("through", "back"),
        group=Group.MOUNT,
    ),
    Option(
        "locks",
        Kind.FLAG,
        Group.MOUNT,
        "locks on files meet those of other mounts and of programs outside; each open and each "
        "close is asked for then",
        sets="locks",
        constant=True,
        long=True,
    ),
    _own(
        "uring",
        Kind.CHOICE,
        "requests over io_uring, taken on the processor on which they are made (Linux 6.14, "
        "enabled for the module fuse: see doctor): where the kernel offers it and the machine has "
        "few processors, always where the kernel offers it, or never; not together with locks",
        "off",
        choices=("auto", "on", "off"),
        group=Group.MOUNT,
    ),
    _own(
        "awake",
        Kind.CHOICE,
        "idle processors of this machine do not sleep while requests come close together, which "
        "makes each up to two and a half times as quick: where they halt at once (KVM's guests; "
        "root), always, or never",
        "auto",
        choices=("auto", "on", "off"),
        group=Group.MOUNT,
    ),
    *map(_ignored, ("_netdev", "nofail", "defaults", "user", "users", "auto", "noauto")),
)

BY_NAME: Final = {option.name: option for option in OPTIONS}

IGNORED_PREFIX: Final = "x-"
"""`x-systemd.automount` and the like: userspace's notes to itself in /etc/fstab."""


def split_escaped(text: str, separator: str, unescape: str) -> list[str]:
    """`text` cut at `separator`; a backslash before a character of `unescape` takes it as it is.

    Any other backslash stays, so that a value can have escapes of its own inside.
    """
    parts = [""]
    i = 0
    while i < len(text):
        if text[i] == "\\" and text[i + 1 : i + 2] and text[i + 1] in unescape:
            parts[-1] += text[i + 1]
            i += 2
            continue
        if text[i] == separator:
            parts.append("")
        else:
            parts[-1] += text[i]
        i += 1
    return parts


def split_options(text: str) -> list[Pair]:
    """The options in the text after one `-o`; a comma inside a value is written `\\,`.

    Empty ones are passed over, as mount(8) does.
    """
    pairs: list[Pair] = []
    for part in split_escaped(text, ",", ",\\"):
        if part:
            name, equals, value = part.partition("=")
            pairs.append((name, value if equals else None))
    return pairs


def _number(option: Option, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{option.name} takes seconds, 0 or more, not {text!r}")
    return value


def _count(option: Option, text: str) -> int:
    # int() alone would take "1_0", " 5 " and other alphabets' digits.
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) < 1 << 32):
        raise UsageError(f"{option.name} takes a number of bytes from 1 to 2^32 - 1, not {text!r}")
    return int(text)


def _choice(option: Option, text: str) -> str:
    if text in option.later:
        usable = " or ".join(option.choices)
        raise UsageError(
            f"{option.name}={text} is planned but not built yet: use {option.name}={usable}"
        )
    if text not in option.choices:
        raise UsageError(f"{option.name} is one of {', '.join(option.choices)}, not {text!r}")
    return text


def _prefixes(option: Option, text: str) -> tuple[bytes, ...]:
    prefixes = []
    for part in split_escaped(text, ":", ":\\"):
        if not part.startswith("/"):
            raise UsageError(
                f"{option.name} takes absolute guest paths with colons between them, not {part!r}"
            )
        if ".." in part.split("/"):
            raise UsageError(f"{option.name} takes paths without .., not {part!r}")
        prefixes.append(os.path.normpath(os.fsencode(part)).replace(b"//", b"/"))
    return tuple(prefixes)


def _value(option: Option, text: str) -> object:
    match option.kind:
        case Kind.SECONDS:
            return _number(option, text)
        case Kind.COUNT:
            return _count(option, text)
        case Kind.CHOICE:
            return _choice(option, text)
        case Kind.PREFIXES:
            return _prefixes(option, text)
        case Kind.PATH:
            return absolute(os.fsencode(text))
        case _:
            return os.fsencode(text)


def _unknown(name: str) -> UsageError:
    # Imported here: a start that nothing is wrong with does not wait for it.
    import difflib

    close = difflib.get_close_matches(name.replace("-", "_"), BY_NAME, n=1)
    hint = f": did you mean {close[0]}?" if close else ""
    return UsageError(f"unknown mount option {name!r}{hint}")


def collect(pairs: Iterable[Pair], privileged: bool) -> Settings:
    """The settings that `pairs` come to, in their order.

    `privileged` is whether the caller is root, whose defaults differ. Raises UsageError, which
    names the option.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        option = BY_NAME.get(name)
        if name.startswith(IGNORED_PREFIX) or (option and option.kind is Kind.IGNORED):
            continue
        if option is None:
            raise _unknown(name)
        if option.kind is Kind.FLAG:
            if text is not None:
                raise UsageError(f"{name} takes no value, so {name}={text} cannot be meant")
            if option.sets:
                values[option.sets] = option.constant
            continue
        if not text:
            raise UsageError(f"{name} needs a value: {option.usage}")
        assert option.sets is not None
        value: Any = _value(option, text)
        if option.kind is Kind.PREFIXES:
            value = values.get(option.sets, ()) + value
        values[option.sets] = value
    return attrs.evolve(Settings.defaults(privileged), **values)


def idle(settings: Settings) -> Iterator[str]:
    """A sentence for each option that says how lookups fold, where none does."""
    if settings.lookup == "fold" or settings.fold:
        return
    for name in ("merge", "fold_key", "exact"):
        if getattr(settings, name) != attrs.fields_dict(Settings)[name].default:
            yield f"{name} has no effect without lookup=fold or fold=PREFIX"


class _Collect(argparse.Action):
    """Append to `namespace.settings` in the order of the command line: the later one wins."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        pairs: list[Pair]
        if self.const is None:
            pairs = split_options(str(values))
        else:
            pairs = [(str(self.const), None if self.nargs == 0 else str(values))]
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *pairs])


def add_options(parser: argparse.ArgumentParser, groups: Iterable[Group]) -> None:
    """Give `parser` `-o` and the long options of `groups`; `namespace.settings` gets the pairs."""
    parser.add_argument(
        "-o",
        dest="settings",
        action=_Collect,
        metavar="OPT[,OPT=VALUE..]",
        help="mount options, all listed below; a comma inside a value is written \\,",
    )
    wanted = set(groups)
    for option in OPTIONS:
        if option.long and option.group in wanted:
            parser.add_argument(
                option.flag,
                dest="settings",
                action=_Collect,
                const=option.name,
                nargs=0 if option.kind is Kind.FLAG else None,
                metavar="|".join(option.choices) or option.metavar or None,
                help=option.meaning.replace("%", "%%"),
            )


def describe(column: int = 32) -> str:
    """The whole table for a help text: a heading a group, then what each option means."""
    lines = []
    for group in Group:
        rows = [option for option in OPTIONS if option.group is group]
        lines.append(f"-o options: {group.value}")
        if group is Group.IGNORED:
            lines.append("  " + ", ".join([row.name for row in rows] + [IGNORED_PREFIX + "*"]))
        for row in rows:
            if row.help:
                text = textwrap.wrap(row.meaning, 96 - column)
                usage = f"  {row.usage}"
                if len(usage) < column:
                    usage = usage.ljust(column) + text.pop(0)
                lines.append(usage)
                lines.extend(" " * column + line for line in text)
        lines.append("")
    return "\n".join(lines).rstrip()
