"""`sysroot-fs check`: names that collide or are refused elsewhere, and damage, without a mount.

`sidecar.check` finds and `sidecar.mending` mends; this module chooses what is asked, and shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Final

import attrs

from sysroot_fs import __version__
from sysroot_fs.cli.errors import SysrootError, UsageError
from sysroot_fs.cli.interrupts import interruptible
from sysroot_fs.cli.trees import measuring
from sysroot_fs.text import absolute, json_fields, reason, shown

if TYPE_CHECKING:
    from sidecar.check import Subject
    from sidecar.findings import Finding, Name
    from sidecar.listings import Directory, Tick
    from sidecar.volume import Traits

KINDS: Final = ("exfat", "ntfs", "apfs", "zfs", "zfs-formd", "ascii", "fold")
ALL: Final = "all"

DESCRIPTION: Final = """\
Read every name in SYSROOT, a directory or a tar archive (- is one on standard input), and say which
would make trouble: Foo and foo where a volume takes them for one, names that a kind of volume
refuses or that are too long for it, and whatever is damaged in the way sysroot-fs keeps names on
volumes that fold case. Nothing is mounted, and nothing is changed unless --repair --yes is given.
The exit status is 0 if nothing was found, 1 if something was, and 2 if the command line is wrong;
notes, which --verbose shows, do not count.
"""

EXAMPLES: Final = """\
examples:
  sysroot-fs check guest                      what is wrong in ./guest, where it lies?
  sysroot-fs check --for exfat guest          could it be copied to an exFAT stick?
  sysroot-fs check linux-6.1.tar.xz           would this archive survive a Mac, or Windows?
  docker export box | sysroot-fs check -      the same from a pipe
  sysroot-fs check --repair guest             what would be mended? (--yes mends it)
"""

WIDTH: Final = len("row-without-object")
MARKS: Final = {"error": "X", "warning": "!", "note": " "}

PAUSE: Final = 0.2
"""Seconds between two progress lines, and before the first one, so that small trees have none."""


# --- what is asked ------------------------------------------------------------------------------


@attrs.frozen
class Question:
    """What is looked for where, and what the head of the report says about it."""

    path: bytes
    source: str
    kinds: tuple[str, ...]
    subject: Subject
    why: str
    traits: Traits | None = None


def _chosen(names: list[str] | None) -> tuple[str, ...]:
    chosen = names or []
    if ALL in chosen:
        return KINDS
    return tuple(kind for kind in KINDS if kind in chosen)


def _tar_question(path: bytes, chosen: tuple[str, ...]) -> Question:
    from sidecar import kinds
    from sidecar.check import Subject

    asked = chosen or KINDS
    subject = Subject(kinds=tuple(kinds.KINDS[name] for name in asked))
    why = "an archive" if chosen else "an archive, on every kind of volume"
    return Question(path, "tar", asked, subject, why)


def _directory_question(path: bytes, fd: int, chosen: tuple[str, ...], probes: bool) -> Question:
    from sidecar import kinds, volume
    from sidecar.check import Subject

    if chosen and not probes:
        subject = Subject(kinds=tuple(kinds.KINDS[name] for name in chosen))
        return Question(path, "directory", chosen, subject, "")
    with measuring(path):
        traits = volume.probe(fd)
    # An index file is a guest's own wherever every name is stored as it is, and may be one where
    # every escape fits.
    serves = traits.measured and not traits.transparent and traits.name_unit == "bytes"
    if chosen:
        why, asked, own = "", chosen, None
    elif traits.transparent:
        why = "its volume keeps every name: collisions are those of the fold policy"
        asked, own = ("fold",), None
    else:
        why = "its volume does not keep every name: what it keeps apart is only noted"
        asked, own = (), kinds.own(traits)
    if not traits.measured:
        why += " (seen without writing to it)" if why else ""
    subject = Subject(
        kinds=tuple(kinds.KINDS[name] for name in asked),
        own=own,
        serves=serves,
        plain=traits.transparent,
    )
    return Question(path, "directory", asked, subject, why, traits)


# --- progress -----------------------------------------------------------------------------------


class Progress:
    """One line on a terminal that is written over, at most every `PAUSE` seconds."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.active = stream.isatty()
        self.started = self.last = time.monotonic()
        self.drawn = False
        self.directories = self.names = 0

    def tick(self, directories: int, names: int) -> None:
        """Count, and draw the line if it is time."""
        self.directories, self.names = directories, names
        now = time.monotonic()
        if self.active and now - self.last >= PAUSE:
            self.last = now
            self.drawn = True
            self.stream.write(
                f"\r{_count(directories, 'directory')}, {_count(names, 'name')}, "
                f"{now - self.started:.0f} s\x1b[K"
            )
            self.stream.flush()

    def erase(self) -> None:
        """Take the line away, so that something can be printed, or for good."""
        if self.drawn:
            self.drawn = False
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _count(number: int, word: str) -> str:
    plural = word[:-1] + "ies" if word.endswith("y") else word + "s"
    return f"{number} {word if number == 1 else plural}"


# --- what is said -------------------------------------------------------------------------------


@attrs.frozen
class Result:
    """A finding, and what repair has come to: None where it was not tried."""

    finding: Finding
    mended: bool | None = None
    obstacle: str | None = None


def as_json(result: Result) -> dict[str, Any]:
    """One finding for programs; every key is always there, but for the `_hex` ones."""
    finding = result.finding
    return {
        "what": finding.what.value,
        "severity": finding.severity.value,
        **json_fields("directory", finding.directory),
        **json_fields("stored_directory", finding.stored_directory),
        "names": [
            {**json_fields("guest", name.guest), **json_fields("stored", name.stored)}
            for name in finding.names
        ],
        "kinds": list(finding.kinds),
        "row": finding.number,
        "mergeable": finding.mergeable,
        "means": finding.means,
        "advice": finding.advice,
        "repair": finding.mend.value if finding.mend is not None else None,
        "mended": result.mended,
        "obstacle": result.obstacle,
    }


def _shown_name(name: Name) -> str:
    if name.guest == name.stored:
        return shown(name.guest)
    return f"{shown(name.guest)} (stored as {shown(name.stored)})"


def as_text(result: Result, repairs: bool) -> str:
    """One finding as a line, without its directory."""
    finding = result.finding
    names = ", ".join(map(_shown_name, finding.names))
    line = f"{MARKS[finding.severity.value]} {finding.what.value:<{WIDTH}}  "
    line += f"{names}: {finding.means}" if names else finding.means
    if result.mended:
        return f"{line}; mended: {finding.mend.value if finding.mend else ''}"
    if result.obstacle is not None:
        return f"{line}; not mended: {result.obstacle}"
    if repairs and finding.mend is not None:
        return f"{line}; with --yes {finding.mend.value}"
    return line


class _Report:
    """Prints results as they come, as text or as one JSON object."""

    def __init__(
        self, question: Question, arguments: argparse.Namespace, progress: Progress
    ) -> None:
        self.question = question
        self.progress = progress
        self.json = bool(arguments.json)
        self.verbose = bool(arguments.verbose)
        self.repairs = bool(arguments.repair)
        self.counts: Counter[str] = Counter()
        self.notes = self.mended = self.printed = 0
        self._directory: bytes | None = None
        self._advice: dict[tuple[str, str], None] = {}

    def started(self, directories: Iterator[Directory]) -> Iterator[Directory]:
        """The same directories; the head is printed when the first one could be read."""
        for number, directory in enumerate(directories):
            if not number:
                self.progress.erase()
                self._begin()
            yield directory

    def _begin(self) -> None:
        question = self.question
        if not self.json:
            asked = ", ".join(question.kinds)
            parts = [part for part in (question.why, f"asked for {asked}" if asked else "") if part]
            print(f"{shown(question.path)}: {'; '.join(parts)}")
            return
        head = {
            "version": __version__,
            **json_fields("sysroot", question.path),
            "source": question.source,
            "kinds": list(question.kinds),
            "measured": None if question.traits is None else question.traits.measured,
            "transparent": None if question.traits is None else question.traits.transparent,
        }
        print(json.dumps(head, indent=2)[:-2] + ',\n  "findings": [', end="")

    def result(self, result: Result) -> None:
        finding = result.finding
        is_note = finding.severity.value == "note"
        if is_note:
            self.notes += 1
        else:
            self.counts[finding.what.value] += 1
        self.mended += bool(result.mended)
        if is_note and not self.verbose:
            return
        self.progress.erase()
        if self.json:
            print("," * bool(self.printed) + "\n    " + json.dumps(as_json(result)), end="")
        else:
            if finding.directory != self._directory:
                self._directory = finding.directory
                print(shown(finding.directory))
            print("  " + as_text(result, self.repairs))
            if finding.advice:
                self._advice[finding.what.value, finding.advice] = None
        self.printed += 1

    def end(self) -> None:
        self.progress.erase()
        if self.json:
            tail = {
                "counts": dict(sorted(self.counts.items())),
                "notes": self.notes,
                "mended": self.mended,
                "directories": self.progress.directories,
                "names": self.progress.names,
            }
            print("\n  ],\n" + json.dumps(tail, indent=2)[2:])
        else:
            if self._advice:
                print("what to do")
            for what, advice in sorted(self._advice):
                print(f"    {what:<{WIDTH}}  {advice}")
            print(self._summary())

    def _summary(self) -> str:
        progress = self.progress
        found = ", ".join(f"{what} {number}" for what, number in sorted(self.counts.items()))
        parts = [
            f"found: {found}" if found else "nothing found",
            f"{_count(progress.directories, 'directory')} with {_count(progress.names, 'name')}",
        ]
        if self.mended:
            parts.append(f"{self.mended} mended")
        if self.notes and not self.verbose:
            parts.append(f"{_count(self.notes, 'note')} (--verbose shows them)")
        return "; ".join(parts)


# --- the verb -----------------------------------------------------------------------------------


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "check",
        help="find names that would collide or be refused, and damage, in a directory or a tar",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sysroot", metavar="SYSROOT", help="the directory, or a tar archive; - is standard input"
    )
    parser.add_argument(
        "--for",
        dest="kinds",
        metavar="KIND",
        action="append",
        choices=[*KINDS, ALL],
        help="judge the names for this kind of volume (exfat, ntfs, apfs, zfs, zfs-formd), for the "
        "fold policy (fold, or ascii, its variant that folds A to Z only), or for all; more than "
        "one may be given. Without it a directory is judged for the volume that it lies on, which "
        "is tried out in a directory of its own that is removed again, and an archive for all",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for programs")
    parser.add_argument("--verbose", action="store_true", help="show notes as well")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="say what can be mended safely: index rows without files, and what killed processes "
        "of sysroot-fs left. No file of yours is touched",
    )
    parser.add_argument("--yes", action="store_true", help="with --repair: mend it")
    parser.set_defaults(run=run)


@contextlib.contextmanager
def _opened(
    arguments: argparse.Namespace, tick: Tick
) -> Iterator[tuple[Question, Iterator[Directory]]]:
    """The question, and the directories to ask it of. Raises UsageError and SysrootError."""
    from sidecar.listings import read_directory, read_tar

    chosen = _chosen(arguments.kinds)
    if arguments.sysroot == "-":
        _no_repair(arguments)
        yield _tar_question(b"-", chosen), read_tar(sys.stdin.buffer, tick)
        return
    path = absolute(os.fsencode(arguments.sysroot))
    if not path:
        raise SysrootError("sysroot is an empty path")
    with interruptible(path):
        try:
            # A FIFO without a writer would keep us waiting.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SysrootError(f"{shown(path)} cannot be read: {reason(error)}") from error
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                question = _directory_question(path, fd, chosen, arguments.repair)
                yield question, read_directory(fd, tick)
            else:
                _no_repair(arguments)
                os.set_blocking(fd, True)
                with open(fd, "rb", closefd=False) as file:
                    yield _tar_question(path, chosen), read_tar(file, tick)
        finally:
            os.close(fd)


def _no_repair(arguments: argparse.Namespace) -> None:
    if arguments.repair:
        raise UsageError("only a directory can be repaired, not an archive: unpack it first")


def _results(
    directory: Directory, findings: list[Finding], question: Question, mends: bool
) -> Iterator[Result]:
    """The findings in one directory, mended where that was wanted."""
    from sidecar.mending import repair

    outcomes: dict[Finding, Result] = {}
    if mends and directory.fd is not None and question.traits is not None:
        for finding, problem in repair(directory.fd, findings, question.traits, time.time_ns()):
            if problem is None:
                outcomes[finding] = Result(finding, mended=True)
            else:
                why = reason(problem) if isinstance(problem, OSError) else str(problem)
                outcomes[finding] = Result(finding, mended=False, obstacle=why)
    for finding in findings:
        yield outcomes.get(finding, Result(finding))


def run(arguments: argparse.Namespace) -> int:
    """Look, say, and mend if told to; the value is the exit status."""
    if arguments.yes and not arguments.repair:
        raise UsageError("--yes says that --repair may change things: it means nothing alone")
    from sidecar.check import inspect
    from sidecar.listings import NotATar

    progress = Progress(sys.stderr)
    with _opened(arguments, progress.tick) as (question, directories):
        report = _Report(question, arguments, progress)
        try:
            for directory, findings in inspect(report.started(directories), question.subject):
                for result in _results(directory, findings, question, arguments.yes):
                    report.result(result)
        except NotATar as error:
            raise SysrootError(
                f"{shown(question.path)} is neither a directory nor a tar archive (plain, gzip, "
                "bzip2 or xz; for another compression, pipe its output into `sysroot-fs check -`)"
            ) from error
        finally:
            progress.erase()
        report.end()
    return 1 if report.counts else 0
