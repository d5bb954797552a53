"""The manual pages, made of what the command line declares: `python -m sysroot_fs.cli.manual DIR`.

What an option means is said once, where it is declared; only what is no option's is said here. The
pages are kept in `docs/man` as they came out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from sysroot_fs import __version__
from sysroot_fs.cli import command, run
from sysroot_fs.cli.options import IGNORED_PREFIX, OPTIONS, Group

DATE: Final = "2026-11-21"
"""When the texts below were last changed; a page must not differ from day to day."""

_OVERVIEW: Final = """\
A sysroot is a directory that holds a Linux guest root. sysroot-fs shows it laid over the host: what
the sysroot has is the guest's, what it lacks is looked up on the host at the same path, for reading
and for writing. The sysroot may lie on a volume that takes Foo and foo for one name (a macOS or
Windows share, exFAT, NTFS, SMB, virtiofs): the guest has byte-exact Linux names all the same.

`sysroot-fs run` starts a command in the guest and is what is used most; sysroot-fs-run(1) describes
it. `sysroot-fs mount` shows the guest root at a directory until it is unmounted. `sysroot-fs
status` says what is mounted and how it is. `sysroot-fs resolve` says where a path of the guest
leads, and why. `sysroot-fs doctor` says whether a directory
can be used here, and at what cost. `sysroot-fs check` says which names of a directory or an archive
would collide or be refused on other volumes, and what is damaged.

A mount is no sandbox: with the defaults a path that the sysroot lacks is the host's own file, and
may be changed. `--host-writes ro` and `--fallback safe` are fences; docs/CONTRACT.md is the whole
rule."""

_RUN: Final = """\
The command gets a mount namespace of its own, in which SYSROOT is mounted over the host's tree,
with the host's /proc, /dev and /sys bound to it, and becomes the root by pivot_root(2). Nothing is
mounted where others see it and no directory is made. When the command ends, or is killed, or
sysroot-fs is, all that was started in the guest is ended (SIGTERM first, SIGKILL two seconds
later) and the mount is gone.

The program is looked at before it is started: a missing loader, script interpreter or shared
library is named, with the places where it was looked for.

The working directory is the caller's where the guest has it, else /. The environment is the
caller's; PATH is set where it is not. Descriptors, the umask and limits are handed on as they are.

Without root the command runs in a user namespace, with the caller as its only user: as root there
(`--map-root`) or as itself (`--map-self`). What belongs to others is shown as that user's, and is
as closed to it as it is outside. /dev/fuse must be open to the user, as distributions have it.

If standard input and output are terminals the command gets a pseudo-terminal of its own: ^C, ^Z and
job control work as in any terminal, and what the program wrote last is shown however it ends."""

_SIGNALS: Final = """\
SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are passed on to the command. Killed with
SIGKILL, sysroot-fs leaves it to another process of its own to end the guest's and to give the
terminal back."""

_EXITS: Final = (
    ("N", "the command's own exit status"),
    ("128+N", "signal N has killed the command"),
    ("127", "the command, its loader, its interpreter or a library of it is missing"),
    ("126", "the command is there and cannot be executed"),
    ("125", "sysroot-fs itself has failed; one line on standard error says why"),
)
_EXITS_OTHERS: Final = (
    ("0", "done; `check` found nothing"),
    ("1", "it could not be done, and one line on standard error says why; `check` found something"),
    ("2", "the command line is wrong"),
    ("130", "interrupted with ^C"),
)

_NAMES: Final = {
    "sysroot-fs": "use a Linux guest root laid over the host, on volumes that fold case too",
    "sysroot-fs-run": "run a command in a Linux guest root laid over the host",
}


def _plain(text: str) -> str:
    """Text for roff: nothing in it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _prose(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        # What is typed, and other pages, in bold.
        words = re.split(r"`([^`]+)`", " ".join(paragraph.split()))
        yield "".join(
            f"\\fB{_plain(word)}\\fP" if number % 2 else _plain(word)
            for number, word in enumerate(words)
        )


def _entry(term: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield f"\\fB{_plain(term)}\\fP"
    yield from _prose(text)


def _term(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = ""
    if action.nargs != 0:
        given = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
        value = f" {given}"
    return ", ".join(action.option_strings) + value


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for group in parser._action_groups:
        shown = [one for one in group._group_actions if one.dest != "help" and one.help]
        if not shown:
            continue
        # argparse's own headings say nothing that the terms do not.
        if group.title not in ("positional arguments", "options"):
            yield f".SS {_plain((group.title or '').capitalize())}"
        for action in shown:
            yield from _entry(_term(action), (action.help or "").replace("%%", "%"))


def _mount_options() -> Iterator[str]:
    for group in Group:
        rows = [option for option in OPTIONS if option.group is group]
        yield f".SS {_plain(group.value[:1].upper() + group.value[1:])}"
        if group is Group.IGNORED:
            yield _plain(", ".join([row.name for row in rows] + [IGNORED_PREFIX + "*"]))
        for row in rows:
            if row.help:
                yield from _entry(row.usage, row.meaning)


def _examples(text: str) -> Iterator[str]:
    for line in text.partition("examples:\n")[2].split("\n\n")[0].splitlines():
        if line.startswith("      "):
            yield _plain(line.strip())
        elif line.strip():
            shown, _, meaning = line.strip().partition("   ")
            yield from (".TP", f"\\fB{_plain(shown)}\\fP")
            if meaning.strip():
                yield _plain(meaning.strip())


def _statuses(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for status, meaning in rows:
        yield from _entry(status, meaning)


def _see_also(*others: str) -> str:
    return ", ".join(f"\\fB{_plain(name[:-3])}\\fP{name[-3:]}" for name in others)


def _head(name: str) -> Iterator[str]:
    yield f'.TH {name.upper()} 1 {DATE} "sysroot\\-fs {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"{_plain(name)} \\- {_plain(_NAMES[name])}"


def _verbs() -> dict[str, argparse.ArgumentParser]:
    for action in command.build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise LookupError("the command line has no verbs")


def _main_page(verbs: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield from _head("sysroot-fs")
    yield ".SH SYNOPSIS"
    for verb, parser in verbs.items():
        yield f"\\fBsysroot\\-fs {verb}\\fP {_plain(_usage(verb, parser))}"
        yield ".br"
    yield "\\fBsysroot\\-fs \\-\\-version\\fP"
    yield ".SH DESCRIPTION"
    yield from _prose(_OVERVIEW)
    for verb, parser in verbs.items():
        if verb != "run":
            yield f".SH {verb.upper()}"
            yield from _prose(parser.description or "")
            yield from _options(parser)
    yield ".SH MOUNT OPTIONS"
    yield from _prose("What `-o` takes, for `mount`, `run` and, as far as they matter, `resolve`.")
    yield from _mount_options()
    yield ".SH EXIT STATUS"
    yield from _statuses(_EXITS_OTHERS)
    yield ".SH EXAMPLES"
    yield from _examples(command.EXAMPLES)
    yield ".SH SEE ALSO"
    yield _see_also("sysroot-fs-run(1)", "fusermount3(1)", "mount(8)", "fuse(4)")


def _run_page(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from _head("sysroot-fs-run")
    yield ".SH SYNOPSIS"
    yield f"\\fBsysroot\\-fs run\\fP {_plain(_usage('run', parser))}"
    yield ".SH DESCRIPTION"
    yield from _prose(_RUN)
    yield ".SH OPTIONS"
    yield from _options(parser)
    yield ".SH SIGNALS"
    yield from _prose(_SIGNALS)
    yield ".SH EXIT STATUS"
    yield from _statuses(_EXITS)
    yield ".SH EXAMPLES"
    yield from _examples(run.EXAMPLES)
    yield ".SH SEE ALSO"
    yield _see_also("sysroot-fs(1)", "chroot(1)", "unshare(1)", "user_namespaces(7)")


def _usage(verb: str, parser: argparse.ArgumentParser) -> str:
    text = " ".join(parser.format_usage().split())
    return text.partition(f"sysroot-fs {verb} ")[2]


def pages() -> dict[str, str]:
    """The pages by file name."""
    verbs = _verbs()
    texts = {"sysroot-fs.1": _main_page(verbs), "sysroot-fs-run.1": _run_page(verbs["run"])}
    return {name: "\n".join(lines) + "\n" for name, lines in texts.items()}


def main() -> None:
    """Write the pages into the directory that is the only argument."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
