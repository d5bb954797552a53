"""`sysroot-fs resolve`: where a guest path leads, step by step, and why.

The walk is the tree's own, the one that the mount uses; this module only shows what it says.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from sysroot_fs.cli import preflight
from sysroot_fs.cli.errors import UsageError
from sysroot_fs.cli.options import Group, Settings, add_options, collect
from sysroot_fs.cli.trees import open_tree
from sysroot_fs.text import absolute, errno_name, json_fields, reason, shown

if TYPE_CHECKING:
    from sidecar.walk import Step

EXAMPLES = """\
examples:
  sysroot-fs resolve guest /etc/hosts /bin/sh
      which file is it that the guest sees under these names?
  sysroot-fs resolve guest /Makefile --create
      under which name would a new file be stored?
  sysroot-fs resolve guest /mnt/guest/etc/hosts --mountpoint /mnt/guest
      the same for a path as it is seen from outside
"""

ABSENT: Final = frozenset({"absent", "claimed", "below-mapping", "policy"})
"""The verdicts that mean: there is no such name."""


@attrs.frozen
class Answer:
    """What became of one path. `disk` is where it lies, or would lie; None if nowhere."""

    path: bytes
    steps: tuple[Step, ...]
    layer: str
    disk: bytes | None
    error: int | None
    why: str

    @property
    def found(self) -> bool:
        """Whether the guest gets an answer other than an error."""
        return self.error is None

    @property
    def creates(self) -> bool:
        """Whether the last name is a new one."""
        return bool(self.steps) and verdict(self.steps[-1]) == "create"

    @property
    def mapped(self) -> bool:
        """Whether a name on the way is stored under another spelling."""
        return any(step.mapped for step in self.steps)


def verdict(step: Step) -> str:
    """The verdict as text, whether the walk gives its enum or the enum's value."""
    return str(getattr(step.verdict, "value", step.verdict))


@attrs.frozen
class _Where:
    layer: str
    disk: bytes | None


def _places(steps: tuple[Step, ...], sysroot: bytes, host: bytes) -> dict[bytes, _Where]:
    """Where each step is on disk, put together from the stored names on the way there."""
    places = {b"/": _Where("sysroot", sysroot)}
    for step in steps:
        disk = None
        if step.layer == "host":
            # The host is asked at the literal guest path (contract, section 2, "twin").
            disk = os.path.join(host, step.path.lstrip(b"/"))
        elif step.layer == "sysroot":
            parent = places.get(os.path.dirname(step.path))
            if parent is not None and parent.disk is not None:
                disk = os.path.join(parent.disk, step.stored or step.name)
        places[step.path] = _Where(step.layer, disk)
    return places


def _last_place(path: bytes, steps: tuple[Step, ...]) -> bytes:
    """The guest path at which the walk ended: `..` goes up and has no step of its own."""
    here = steps[-1].path if steps else b"/"
    for part in reversed(path.split(b"/")):
        if part == b"..":
            here = os.path.dirname(here)
        elif part not in (b"", b"."):
            break
    return here


def answer(path: bytes, steps: tuple[Step, ...], sysroot: bytes, host: bytes) -> Answer:
    """Judge a walk by where it ended; no steps at all is the guest's root."""
    last = steps[-1] if steps else None
    if last is not None and (last.error is not None or verdict(last) in ABSENT):
        return Answer(path, steps, last.layer, None, last.error or errno.ENOENT, last.why)
    end = _last_place(path, steps)
    where = _places(steps, sysroot, host).get(end, _Where("none", None))
    why = next((step.why for step in reversed(steps) if step.path == end), "the guest's root")
    return Answer(path, steps, where.layer, where.disk, None, why)


def _bytes_fields(key: str, value: bytes | None) -> Mapping[str, str | None]:
    return {key: None} if value is None else json_fields(key, value)


def as_json(result: Answer) -> dict[str, Any]:
    """One object for one path; every key is always there, but for the `_hex` ones."""
    return {
        **_bytes_fields("path", result.path),
        "found": result.found,
        "creates": result.creates,
        "layer": result.layer,
        **_bytes_fields("disk", result.disk),
        "mapped": result.mapped,
        "errno": None if result.error is None else errno_name(result.error),
        "why": result.why,
        "steps": [
            {
                **_bytes_fields("name", step.name),
                **_bytes_fields("path", step.path),
                "verdict": verdict(step),
                "layer": step.layer,
                **_bytes_fields("stored", step.stored),
                "mapped": step.mapped,
                "why": step.why,
                **_bytes_fields("link", step.link),
                "errno": None if step.error is None else errno_name(step.error),
            }
            for step in result.steps
        ],
    }


def _row(step: Step) -> tuple[str, ...]:
    stored = "-" if step.stored is None else shown(step.stored)
    if step.stored == step.name:
        stored = "the same"
    why = step.why
    if step.link is not None:
        why += f" -> {shown(step.link)}"
    return (
        shown(step.path),
        step.layer,
        verdict(step),
        stored,
        "mapped" if step.mapped else "no",
        why,
    )


HEADINGS: Final = ("guest path", "layer", "verdict", "stored as", "mapping", "why")


def conclusion(result: Answer) -> str:
    """The last line: where it is, or the errno and why."""
    path = shown(result.path)
    if result.error is not None:
        return f"{path} is {errno_name(result.error)}: {result.why}"
    if result.layer == "virtual":
        return f"{path} is an empty directory of the mount's own: {result.why}"
    where = "an unknown place" if result.disk is None else shown(result.disk)
    if result.creates:
        return f"{path} would be created in the {result.layer}, as {where}"
    return f"{path} is in the {result.layer}, at {where}"


def as_text(result: Answer) -> str:
    """The table of the steps, and the conclusion."""
    lines = []
    if result.steps:
        rows = [HEADINGS, *map(_row, result.steps)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append("  ".join(cells).rstrip())
    lines.append(conclusion(result))
    return "\n".join(lines)


def _parts(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _leads_out(parts: list[bytes]) -> bool:
    depth = 0
    for part in parts:
        depth += -1 if part == b".." else 1
        if depth < 0:
            return True
    return False


def strip_mountpoint(path: bytes, mountpoint: bytes) -> bytes:
    """The guest path of `path`, seen from outside below `mountpoint`; raises UsageError.

    Links below the mountpoint are the guest's, so what follows it is left to the walk as it is,
    `..` and all; only a `..` that would lead out of the mount is not the guest's any more.
    """
    joined = os.path.join(os.getcwdb(), path)
    slash = b"/" if path.endswith(b"/") else b""
    for outside in (_parts(joined), _parts(os.path.normpath(joined))):
        for top in (_parts(absolute(mountpoint)), _parts(os.path.realpath(mountpoint))):
            inside = outside[len(top) :]
            if outside[: len(top)] == top and not _leads_out(inside):
                return b"/" + b"/".join(inside) + (slash if inside else b"")
    raise UsageError(f"{shown(path)} is not below the mountpoint {shown(mountpoint)}")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "resolve",
        help="say where a guest path leads, and why",
        description="Walk each guest path as the mount would and show for every component which\n"
        "layer answered, under which name it is stored, and why not the other layer. Nothing\n"
        "is mounted or changed. The exit status is 0 if every path leads somewhere, else 1.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sysroot", metavar="SYSROOT", help="the directory that holds the guest")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a path as the guest names it")
    parser.add_argument(
        "--mountpoint", metavar="M", help="the paths are as seen from outside, below this mount"
    )
    parser.add_argument("--create", action="store_true", help="where a new name would go, and how")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, one a path")
    add_options(parser, [Group.TREE])
    parser.set_defaults(run=run)


def _guest_path(text: str, mountpoint: str | None) -> bytes:
    path = os.fsencode(text)
    if not path:
        raise UsageError("an empty path names nothing")
    if mountpoint is not None:
        return strip_mountpoint(path, os.fsencode(mountpoint))
    return path if path.startswith(b"/") else b"/" + path


def _failed(path: bytes, error: OSError) -> Answer:
    number = error.errno or errno.EIO
    return Answer(path, (), "none", None, number, reason(error))


def run(arguments: argparse.Namespace) -> int:
    """Resolve every path; the value is the exit status."""
    settings: Settings = collect(arguments.settings or (), privileged=os.geteuid() == 0)
    sysroot = absolute(os.fsencode(arguments.sysroot))
    paths = [_guest_path(text, arguments.mountpoint) for text in arguments.paths]
    preflight.check_sysroot(sysroot)
    preflight.check_host(settings.host)
    tree = open_tree(sysroot, settings)
    all_found = True
    try:
        for number, path in enumerate(paths):
            try:
                steps = tuple(tree.walk.resolve(path, create=arguments.create))
                result = answer(path, steps, sysroot, settings.host)
            except OSError as error:
                result = _failed(path, error)
            all_found &= result.found
            if arguments.json:
                print(json.dumps(as_json(result)))
            else:
                print(("\n" if number else "") + as_text(result))
    finally:
        tree.close()
    return 0 if all_found else 1
