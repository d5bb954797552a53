"""`sysroot-fs doctor`: what the volume and the machine can do, and what each lack costs.

Every finding has a name, the value that was measured, a state, and one sentence on what it
means. A lack that costs something is `costs`; one that makes a mount impossible is `stops`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs

from sidecar import linux
from sysroot_fs import __version__
from sysroot_fs.cli import machine, preflight
from sysroot_fs.cli.doors import VARIABLE, chosen
from sysroot_fs.cli.errors import FuseUnavailable, SysrootError
from sysroot_fs.cli.trees import measuring
from sysroot_fs.fuse import awake
from sysroot_fs.text import absolute, reason, shown

if TYPE_CHECKING:
    from sidecar.volume import Traits

FINE: Final = "fine"
COSTS: Final = "costs"
STOPS: Final = "stops"

MARKS: Final = {FINE: " ", COSTS: "!", STOPS: "X"}

ENOUGH_DESCRIPTORS: Final = 4096
"""Below this the tree closes and reopens directories while a big build runs."""

OPENAT2: Final = (5, 6)
"""The first Linux with openat2(2)."""


@attrs.frozen
class Finding:
    """One thing that was measured."""

    section: str
    name: str
    value: str | int | bool | None
    state: str
    means: str


def _yes_no(
    name: str, value: bool | None, wanted: bool, fine: str, costs: str
) -> tuple[str, bool | None, str, str]:
    # A trait that could not be measured (read-only volume) is not held against it.
    if value is None:
        return name, None, FINE, "not measured: the volume is read-only or did not say"
    good = value == wanted
    return name, value, FINE if good else COSTS, fine if good else costs


CONTROL: Final = bytes(range(1, 0x20))


def _refused(refused: bytes) -> str:
    """Refused characters; all the control characters together in words, not as 31 escapes."""
    if not set(CONTROL) <= set(refused):
        return shown(refused) or "none"
    printable = shown(refused.translate(None, CONTROL))
    return f"{printable} and control" if printable else "control"


def volume_findings(traits: Traits) -> Iterator[Finding]:
    """The volume's traits, in the order of what they mean for a guest."""

    def row(name: str, value: str | int | bool | None, state: str, means: str) -> Finding:
        return Finding("volume", name, value, state, means)

    def yes(name: str, value: bool | None, wanted: bool, fine: str, costs: str) -> Finding:
        return row(*_yes_no(name, value, wanted, fine, costs))

    yield yes(
        "transparent",
        traits.transparent,
        True,
        "guest names are stored as they are, and nothing has to be translated",
        "some guest names are stored in another form; the guest never sees it",
    )
    yield yes(
        "folds case",
        traits.folds,
        False,
        "Foo and foo are two names",
        "Foo and foo are one name to the volume: the second one to come is stored escaped",
    )
    yield yes(
        "preserves case",
        traits.preserves_case,
        True,
        "names come back as they were given",
        "names come back in another case: those with upper-case letters are stored escaped",
    )
    normalises = str(traits.normalises)
    yield row(
        "normalises",
        normalises,
        FINE if normalises == "no" else COSTS,
        {
            "no": "the composed and decomposed forms of an accent are two names",
            "loose": "the composed and decomposed forms of an accent are one name to the "
            "volume: the second one to come is stored escaped",
            "stores": "the volume rewrites accents: names with them are stored escaped",
        }.get(normalises, "the volume treats accents in a way of its own"),
    )
    yield yes(
        "non-ASCII names",
        traits.non_ascii,
        True,
        "they are stored byte for byte",
        "names beyond ASCII are stored escaped",
    )
    yield yes(
        "ill-formed UTF-8",
        traits.ill_formed,
        True,
        "names of any bytes are stored as they are",
        "names that are not UTF-8 are stored escaped",
    )
    refused = bytes(traits.refused)
    yield row(
        "refused characters",
        _refused(refused),
        COSTS if refused else FINE,
        "names with these are stored escaped" if refused else "every character is taken",
    )
    yield yes(
        "trailing dot or space",
        traits.trailing_dot_space,
        True,
        "kept",
        "names that end in a dot or a blank are stored escaped",
    )
    yield yes(
        "names of devices",
        traits.device_names,
        True,
        "aux, nul and the like are names like others",
        "aux, nul and the like are stored escaped",
    )
    enough = traits.name_max >= 255
    yield row(
        "longest name",
        f"{traits.name_max} {traits.name_unit}",
        FINE if enough else COSTS,
        "holds every guest name"
        if enough
        else "longer guest names get a token and a row in the directory's index file",
    )
    yield yes(
        "symlinks",
        traits.symlinks,
        True,
        "the guest can make them",
        "the guest gets EPERM for symlink(2): most Linux guests need them to be installed",
    )
    yield yes(
        "hard links",
        traits.hard_links,
        True,
        "the guest can make them",
        "the guest gets EPERM for link(2): git, package managers and some builds fall back to "
        "copies or fail",
    )
    yield yes(
        "modes",
        traits.modes,
        True,
        "chmod works",
        "chmod has no effect: programs and data have whatever mode the volume shows for all",
    )
    yield yes(
        "owners",
        traits.owners,
        True,
        "chown works",
        "every file belongs to one user, and set-user-id programs cannot work as meant",
    )
    yield yes(
        "special files",
        traits.special_files,
        True,
        "fifos, sockets and devices can be made",
        "the guest gets EPERM for fifos, sockets and devices on this volume",
    )
    yield yes(
        "extended attributes",
        traits.xattrs,
        True,
        "file capabilities and ACLs are kept",
        "file capabilities and ACLs cannot be stored: the guest gets EOPNOTSUPP",
    )
    yield yes(
        "rename without replacing",
        traits.rename_noreplace,
        True,
        "RENAME_NOREPLACE is the volume's own",
        "RENAME_NOREPLACE is done another way, or refused with EINVAL where there is none",
    )
    yield yes(
        "rename exchanging",
        traits.rename_exchange,
        True,
        "RENAME_EXCHANGE is the volume's own",
        "RENAME_EXCHANGE is done another way, or refused with EINVAL where there is none",
    )
    coarse = traits.time_step_ns is not None and traits.time_step_ns > 1000
    yield row(
        "time step (ns)",
        traits.time_step_ns,
        COSTS if coarse else FINE,
        "times are rounded, so make may rebuild too much or too little within one step"
        if coarse
        else "times are kept finely enough for make",
    )
    yield yes(
        "stable inode numbers",
        traits.stable_inodes,
        True,
        "a file keeps its number",
        "a file's number may change: programs that compare numbers (tar, find, git) may be misled",
    )
    yield yes(
        "writable",
        traits.writable,
        True,
        "the guest can change its files",
        "the guest can only read: every change gets EROFS",
    )


_ONLY_BINDING: Final = " (only door=pyfuse3 needs it)"


def _door() -> Finding:
    door = chosen("auto")
    means = {
        "kernel": "requests are taken in the kernel's own protocol: the faster way",
        "pyfuse3": f"requests are taken by pyfuse3, because {VARIABLE} says so",
    }
    return Finding("machine", "door", door, FINE, means[door])


def _binding() -> Finding:
    version = machine.pyfuse3_version()
    try:
        machine.load_binding()
    except FuseUnavailable as error:
        return Finding("machine", "pyfuse3", version, COSTS, f"{error}{_ONLY_BINDING}")
    return Finding("machine", "pyfuse3", version, FINE, f"it can be loaded{_ONLY_BINDING}")


def _uring() -> Finding:
    problem = machine.uring_problem()
    # Few machines have it, and nobody needs it: no lack.
    return Finding(
        "machine",
        "io_uring",
        problem is None,
        FINE,
        problem or "requests are taken on the processor on which they are made",
    )


def _awake() -> Finding:
    problem, sleeper = awake.problem(), awake.driver()
    if problem is not None:
        means = problem
    elif awake.pays():
        means = "idle processors are kept awake while requests come close together"
    else:
        means = "idle processors are kept awake on demand only: -o awake=on"
    return Finding("machine", "idle processors", sleeper, FINE, means)


def machine_findings() -> Iterator[Finding]:
    """The kernel's, libfuse's and this user's abilities."""

    def row(name: str, value: str | int | bool | None, state: str, means: str) -> Finding:
        return Finding("machine", name, value, state, means)

    new_enough = linux.version(machine.kernel()) >= OPENAT2
    yield row(
        "kernel",
        machine.kernel(),
        FINE if new_enough else STOPS,
        "has openat2(2), which keeps host paths inside the host root"
        if new_enough
        else "lacks openat2(2), which keeps host paths inside the host root: Linux 5.6 or newer "
        "is needed",
    )
    yield _door()
    yield _uring()
    yield _awake()
    yield _binding()
    libfuse = machine.libfuse_version()
    yield row(
        "libfuse",
        libfuse,
        FINE if libfuse else COSTS,
        f"pyfuse3's library{_ONLY_BINDING}"
        if libfuse
        else f"libfuse 3 is missing: install the package libfuse3-3 or libfuse3-4{_ONLY_BINDING}",
    )
    problem = machine.device_problem()
    yield row(
        machine.DEVICE, problem is None, STOPS if problem else FINE, problem or "it can be opened"
    )
    mounts, helper = machine.may_mount(), machine.fusermount()
    yield row(
        "mount(2)",
        mounts,
        FINE if mounts else COSTS,
        "this user may mount by itself"
        if mounts
        else "this user mounts with fusermount3's help: without set-id bits and devices",
    )
    yield row(
        "fusermount3",
        helper,
        FINE if helper else COSTS if mounts else STOPS,
        "users other than root can mount and unmount"
        if helper
        else "only root can mount, with umount to end it, and auto_unmount does not work: "
        "install the package fuse3",
    )
    others = machine.user_allow_other()
    yield row(
        "user_allow_other",
        others,
        FINE if others or os.geteuid() == 0 else COSTS,
        "users other than root may mount with allow_other"
        if others
        else f"only root may mount with allow_other: {machine.FUSE_CONF} does not allow it to "
        "others",
    )
    proc = machine.proc_problem()
    yield row(
        "/proc",
        proc is None,
        FINE if proc is None else STOPS,
        "files are reopened through it" if proc is None else f"it is needed, and {proc}",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    enough = unlimited or soft >= ENOUGH_DESCRIPTORS
    most = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    yield row(
        "descriptor limit",
        "no limit" if unlimited else soft,
        FINE if enough else COSTS,
        f"enough to keep a working set open (hard limit: {most})"
        if enough
        else "fewer files are kept open at once, so walks of big trees reopen directories: "
        f"`ulimit -n` raises it up to {most}",
    )


def probe(sysroot: bytes) -> Traits:
    """The traits of the volume on which `sysroot` lies; raises SysrootError."""
    from sidecar import volume

    preflight.check_sysroot(sysroot)
    try:
        dirfd = os.open(sysroot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with measuring(sysroot):
                return volume.probe(dirfd)
        finally:
            os.close(dirfd)
    except OSError as error:
        raise SysrootError(
            f"the volume of {shown(sysroot)} cannot be probed: {reason(error)}"
        ) from error


def _shown_value(value: str | int | bool | None) -> str:
    match value:
        case None:
            return "unknown"
        case True:
            return "yes"
        case False:
            return "no"
        case _:
            return str(value)


def as_text(sysroot: bytes, findings: list[Finding], measured: bool) -> str:
    """A section a subject, a line a finding, and the verdict as the last line."""
    how = "" if measured else " (seen without writing to it, so some of this is unknown)"
    titles = {
        "volume": f"the volume of {shown(sysroot)}{how}",
        "machine": "this machine, for this user",
    }
    name_width = max(len(finding.name) for finding in findings)
    value_width = max(len(_shown_value(finding.value)) for finding in findings)
    lines = []
    for section, title in titles.items():
        lines.append(title)
        for finding in findings:
            if finding.section == section:
                lines.append(
                    f"{MARKS[finding.state]} {finding.name:<{name_width}}  "
                    f"{_shown_value(finding.value):<{value_width}}  {finding.means}"
                )
        lines.append("")
    lines.append(conclusion(sysroot, findings))
    return "\n".join(lines)


def conclusion(sysroot: bytes, findings: list[Finding]) -> str:
    """One sentence: whether a mount could work here."""
    stops = [finding for finding in findings if finding.state == STOPS]
    costs = [finding for finding in findings if finding.state == COSTS]
    if stops:
        return f"{shown(sysroot)} cannot be mounted here: {'; '.join(f.means for f in stops)}"
    if costs:
        return f"{shown(sysroot)} can be mounted here; each line marked ! costs what it says"
    return f"{shown(sysroot)} can be mounted here, and nothing is missing"


def as_json(sysroot: bytes, findings: list[Finding], measured: bool) -> dict[str, Any]:
    """The same for programs."""
    return {
        "version": __version__,
        "sysroot": shown(sysroot),
        "measured": measured,
        "mountable": all(finding.state != STOPS for finding in findings),
        "findings": [attrs.asdict(finding) for finding in findings],
    }


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "doctor",
        help="say what the volume and this machine can do, and what each lack costs",
        description="Measure what the volume under SYSROOT does to names and what this machine "
        "can do, and say in a sentence each what that means for a guest. Lines marked ! cost "
        "something, lines marked X make a mount impossible. The exit status is 1 if there is "
        "such a line, else 0.",
        allow_abbrev=False,
    )
    parser.add_argument("sysroot", metavar="SYSROOT", help="the directory that holds the guest")
    parser.add_argument("--json", action="store_true", help="one JSON object for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and say; the value is the exit status."""
    sysroot = absolute(os.fsencode(arguments.sysroot))
    traits = probe(sysroot)
    findings = [*volume_findings(traits), *machine_findings()]
    if arguments.json:
        print(json.dumps(as_json(sysroot, findings, bool(traits.measured)), indent=2))
    else:
        print(as_text(sysroot, findings, bool(traits.measured)))
    return 1 if any(finding.state == STOPS for finding in findings) else 0
