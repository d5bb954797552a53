"""The suite of the host fallback: guest programs over two prepared layers, looked at from outside.

An item says in one sentence which rule of the contract it is about, what each layer holds at one
and the same guest path, what to type there, what that says, and what each layer holds afterwards.
No chroot knows this, so it is written down, from docs/CONTRACT.md. An item's mirror image has the
same trees in each other's layers. The items are in `fallback_items`.

All items of one set of mount options run in one guest process, each in ``/tmp/NAME``. In their
scripts ``try COMMAND`` says whether it succeeds, and nothing else; ``see FILE..`` gives contents.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import attrs

from sidecar import escape
from sidecar.naming import HELPER_NAMES
from tests.matrix.cases import Case, CasesError, Outcome, run_cases
from tests.matrix.parts import Parts, divided
from tests.matrix.suite import Setting, Tally

__all__ = ["After", "Fallback", "Item", "mirrored", "tree"]

Tree = Mapping[str, str]
"""By path: the content of a file, ``/`` for a directory, ``->TARGET`` for a symlink.

A file of another mode than 0644 has ``(MODE)`` behind its content.
"""

_TOP: Final = "tmp"
_WORK: Final = "root/matrix"


_HELPERS: Final = """\
try() { "$@" >/dev/null 2>&1 && echo yes || echo no; }
see() { for file; do cat "$file" 2>/dev/null || echo absent; echo; done; }
"""


def tree(text: str) -> Tree:
    """The tree of words such as ``etc/passwd=guest d/ link->target``, with their parents."""
    entries: dict[str, str] = {}
    for word in text.split():
        if "->" in word:
            path, _, target = word.partition("->")
            entries[path] = f"->{target}"
        elif "=" in word:
            path, _, content = word.partition("=")
            entries[path] = content
        else:
            path = word.rstrip("/")
            entries[path] = "/"
        for parent in list(Path(path).parents)[:-1]:
            entries[str(parent)] = "/"
    return entries


@attrs.frozen
class After:
    """What comes of an item: what it says, and the layers; None for as it was."""

    says: str
    sysroot: str | None = None
    host: str | None = None


@attrs.frozen
class Item:
    """A rule, two layers, and what to type in the directory that they share.

    A layer that is None has no such directory. `elsewhere` is for volumes on which something else
    is right, with the reason in the rule; `more_needs` is what else of `cases.NEEDS` the sysroot's
    volume must be able to do. `{here}` in an option is the directory's path.
    """

    name: str
    rule: str
    sysroot: str | None
    host: str | None
    script: str
    after: After
    elsewhere: Mapping[str, After] = attrs.field(factory=dict)
    more_needs: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()

    @property
    def directory(self) -> str:
        """Where it runs, as the guest sees it."""
        return f"/{_TOP}/{self.name}"

    @property
    def needs(self) -> frozenset[str]:
        """What the sysroot's volume must be able to do, of `cases.NEEDS`."""
        links = any("->" in (text or "") for text in (self.sysroot, self.after.sysroot))
        return self.more_needs | ({"symlinks"} if links else set())

    @property
    def case(self) -> Case:
        """Its script for the runner of cases."""
        return Case(self.name, "sh", f"{_HELPERS}exec 2>&1; cd {self.directory}\n{self.script}")

    @property
    def switches(self) -> tuple[str, ...]:
        """The options of its mount."""
        return tuple(option.format(here=self.directory) for option in self.options)


def mirrored(
    item: Item,
    rule: str,
    after: After,
    elsewhere: Mapping[str, After],
    more_needs: frozenset[str],
) -> Item:
    """*item* with what lay in one layer in the other one."""
    return attrs.evolve(
        item,
        name=f"{item.name}-mirrored",
        rule=rule,
        sysroot=item.host,
        host=item.sysroot,
        after=after,
        elsewhere=elsewhere,
        more_needs=more_needs,
    )


@attrs.frozen
class Fallback(Parts[Item]):
    """Items whose outcome the contract says."""

    def run(self, setting: Setting, items: Sequence[str]) -> Tally:
        """Run the named items, those of the same options in one guest process."""
        can, skipped = divided(self.wanted(items), setting.lacks)
        failures: dict[str, Sequence[str]] = {}
        for switches, group in groupby(sorted(can, key=_switches), key=_switches):
            for item, words in _run(setting, list(group), switches):
                if words:
                    failures[item.name] = [item.rule, *words, *_to_type(item)]
        passed = [item.name for item in can if item.name not in failures]
        return Tally(passed, failures, skipped)


def _switches(item: Item) -> tuple[str, ...]:
    return item.switches


def _run(
    setting: Setting, items: Sequence[Item], switches: Sequence[str]
) -> Iterator[tuple[Item, list[str]]]:
    """Each item with what differs from what is expected."""
    options = [word for switch in switches for word in ("-o", switch)]
    work = setting.sysroot / _WORK
    work.mkdir(parents=True)
    trouble: list[str] = []
    try:
        for item in items:
            for layer, text in ((setting.sysroot, item.sysroot), (setting.host, item.host)):
                (layer / _TOP).mkdir(exist_ok=True)
                if text is not None:
                    _make(layer / item.directory[1:], tree(text))
        cases = [item.case for item in items]
        try:
            got = run_cases(cases, setting.run_command(*options), f"/{_WORK}", outside=work)
        except CasesError as error:
            got = error.outcomes
            trouble = [f"not run: {error}"]
        for item in items:
            yield item, _differences(item, got[item.name], setting) if item.name in got else trouble
    finally:
        shutil.rmtree(work)
        for item in items:
            for layer in (setting.sysroot, setting.host):
                shutil.rmtree(layer / item.directory[1:], ignore_errors=True)


def _make(top: Path, entries: Tree) -> None:
    top.mkdir()
    for name, what in sorted(entries.items()):
        path = top / name
        if what == "/":
            path.mkdir()
        elif what.startswith("->"):
            path.symlink_to(what.removeprefix("->"))
        else:
            path.write_text(what)


def _look(top: Path, modes: bool) -> Tree | None:
    """What a layer holds, under the guest's names; None where it has no such directory."""
    if not top.exists():
        return None
    entries: dict[str, str] = {}
    root = os.fsencode(top)
    for parent, folders, files in os.walk(root):
        for stored in (*folders, *files):
            if stored not in HELPER_NAMES:
                path = os.path.join(parent, stored)
                parts = os.path.relpath(path, root).split(b"/")
                name = os.fsdecode(b"/".join(escape.decode(part) or part for part in parts))
                entries[name] = _described(path, modes)
    return entries


def _described(path: bytes, modes: bool) -> str:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        return "/"
    if stat.S_ISLNK(found.st_mode):
        return f"->{os.fsdecode(os.readlink(path))}"
    if not stat.S_ISREG(found.st_mode):
        return oct(stat.S_IFMT(found.st_mode))
    with open(path, "rb") as file:
        content = " ".join(file.read(200).decode(errors="replace").split())
    mode = stat.S_IMODE(found.st_mode)
    return content if mode == 0o644 or not modes else f"{content}({mode:o})"


def _differences(item: Item, got: Outcome, setting: Setting) -> list[str]:
    expected = item.elsewhere.get(setting.cell.volume, item.after)
    words = [*got.trouble]
    if got.status:
        words.append(f"exit status {got.status}, expected 0")
    said = got.out.decode(errors="replace").split()
    if said != expected.says.split():
        words.append(f"it says {' '.join(said)!r}, expected {' '.join(expected.says.split())!r}")
    for name, layer, before, after in (
        ("sysroot", setting.sysroot, item.sysroot, expected.sysroot),
        ("host", setting.host, item.host, expected.host),
    ):
        text = before if after is None else after
        want = None if text is None else tree(text)
        modes = name == "host" or "modes" not in setting.lacks
        have = _look(layer / item.directory[1:], modes)
        if have != want:
            words.append(f"the {name} holds {_shown(have)}, expected {_shown(want)}")
    return words


def _shown(entries: Tree | None) -> str:
    if entries is None:
        return "no such directory"
    leaves = [f"{name} {what}" for name, what in sorted(entries.items())]
    return f"[{', '.join(leaves)}]"


def _to_type(item: Item) -> Iterator[str]:
    """The words with which a person sees it for himself."""
    for layer, text in (("sysroot", item.sysroot), ("host", item.host)):
        yield f"{layer}{item.directory}: {text if text is not None else '(absent)'}"
    yield "options: " + (" ".join(f"-o {option}" for option in item.switches) or "none")
    yield from (f"$ {line}" for line in item.script.splitlines())
