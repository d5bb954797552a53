"""`sysroot-fs run`: a command in the guest root, with nothing mounted where others see it.

Everything that the command line says is checked here and made into a `Plan`; the package `guest`
does the rest. Its own failures exit with 125, as those of chroot(1), env(1) and timeout(1) do, so
that a caller can tell them from the command's.
"""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from sysroot_fs.cli import machine, preflight
from sysroot_fs.cli.doors import file_options, load_door
from sysroot_fs.cli.errors import FuseUnavailable, RunFailed
from sysroot_fs.cli.logs import choose_handler, note, open_log, start_logging
from sysroot_fs.cli.options import Group, Settings, add_options, collect, describe, idle
from sysroot_fs.cli.plans import make_plan, make_room
from sysroot_fs.cli.trees import open_tree
from sysroot_fs.guest.plan import OWN_FAILURE, GuestError, Plan, Refusal
from sysroot_fs.guest.runner import Runner
from sysroot_fs.text import absolute

if TYPE_CHECKING:
    from sysroot_fs.tree import Tree

EXAMPLES = """\
examples:
  sysroot-fs run guest -- make -C /home/me/project
      the guest's make, on this machine's project
  sysroot-fs run guest
      a shell in the guest
  sysroot-fs run --ro --fallback none --pid guest -- /bin/ls -l /
      the guest alone, unchangeable, with processes of its own
  sysroot-fs run --bind ~/src:/work --chdir /work guest -- ./configure
      ./configure of ~/src, which the guest sees as /work

exit status:
  the command's own; 128+N where signal N killed it; 127 where it, its loader or a library is
  missing; 126 where it cannot be executed; 125 where sysroot-fs itself has failed
"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "run",
        help="run a command in a guest root",
        usage="sysroot-fs run [OPTION..] SYSROOT [--] [COMMAND [ARGUMENT..]]",
        description="Run COMMAND (default: /bin/sh) in the guest root SYSROOT, laid over the\n"
        "host's files, in a mount namespace of its own. Needs no root and leaves nothing behind.\n"
        "Options stand before SYSROOT; what follows it is the command's.",
        epilog=f"{describe()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "sysroot",
        metavar="SYSROOT",
        nargs=argparse.PARSER,
        action=_Words,
        help="the directory that holds the guest, and what to run in it",
    )
    where = parser.add_argument_group("where and as whom")
    where.add_argument("--chdir", metavar="DIR", help="start in this directory of the guest")
    where.add_argument("--user", metavar="UID[:GID]", help="run as this user (as root only)")
    who = where.add_mutually_exclusive_group()
    who.add_argument(
        "--map-root", action="store_true", help="without root: be root inside (the default)"
    )
    who.add_argument(
        "--map-self", action="store_true", help="without root: be yourself inside as well"
    )
    where.add_argument("--hostname", metavar="NAME", help="a host name of the guest's own")
    where.add_argument(
        "--pid",
        action="store_true",
        help="processes of its own: the guest sees no others, with a fresh /proc",
    )
    environment = parser.add_argument_group("environment")
    environment.add_argument(
        "--clean-env", action="store_true", help="start with PATH, HOME, TERM and nothing else"
    )
    environment.add_argument(
        "--env", metavar="K=V", action="append", default=[], help="set a variable (repeatable)"
    )
    environment.add_argument(
        "--unset", metavar="K", action="append", default=[], help="take one away (repeatable)"
    )
    mounts = parser.add_argument_group("mounts")
    mounts.add_argument(
        "--bind",
        metavar="SRC:DST[:ro]",
        dest="mounts",
        action=_Mount,
        const="bind",
        help="show the host's SRC at the guest's DST, which need not exist (repeatable)",
    )
    mounts.add_argument(
        "--tmpfs",
        metavar="DST",
        dest="mounts",
        action=_Mount,
        const="tmpfs",
        help="an empty directory in memory at the guest's DST (repeatable)",
    )
    mounts.add_argument("--ro", action="store_true", help="the same as -o ro")
    for name in ("proc", "dev", "sys"):
        mounts.add_argument(
            f"--{name}",
            choices=("host", "fresh", "none"),
            help=f"/{name}: the host's, a new one, or an empty directory"
            + (" (default: host; fresh with --pid)" if name == "proc" else " (default: host)"),
        )
    terminal = parser.add_argument_group("terminal").add_mutually_exclusive_group()
    terminal.add_argument(
        "--tty",
        action="store_true",
        default=None,
        help="a pseudo-terminal of its own (the default where input and output are terminals)",
    )
    terminal.add_argument(
        "--no-tty", action="store_false", dest="tty", help="never: hand on what there is"
    )
    add_options(parser, Group)
    parser.set_defaults(run=run)


class _Words(argparse.Action):
    """SYSROOT [--] COMMAND.. as it stands: of two arguments argparse takes a -- out by itself."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        words = list(map(str, values or ()))
        if words[:1] == ["--"]:
            del words[0]
        if words[1:2] == ["--"]:
            del words[1]
        namespace.sysroot, *namespace.command = words


class _Mount(argparse.Action):
    """Append (what, text) to one list: the order of --bind and --tmpfs among each other counts."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        added = [*(getattr(namespace, self.dest) or []), (str(self.const), str(values))]
        setattr(namespace, self.dest, added)


def _serve(
    tree: "Tree", settings: Settings, plan: Plan, log: logging.Handler | None
) -> Callable[[Callable[[], int | None]], None]:
    served = file_options(settings)

    def serve_mount(take_mount: Callable[[], int | None]) -> None:
        start_logging(choose_handler(log, foreground=False), debug=False)
        serve = load_door(settings.door)
        device = take_mount()
        if device is None:
            return
        try:
            with machine.most_descriptors():
                serve(tree, b"/dev/fd/%d" % device, None, served, lambda: None)
        except Exception:
            logging.getLogger(__name__).critical("the server died", exc_info=True)
            raise

    return serve_mount


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the value is its exit status."""
    privileged = machine.may_mount()
    settings = collect(arguments.settings or (), privileged)
    if arguments.ro:
        settings = attrs.evolve(settings, read_only=True)
    sysroot = absolute(os.fsencode(arguments.sysroot))
    preflight.check_sysroot(sysroot)
    preflight.check_host(settings.host)
    problem = machine.device_problem()
    if problem is not None:
        raise FuseUnavailable(problem)
    problem = machine.proc_problem()
    if problem is not None:
        raise FuseUnavailable(f"run needs /proc, and {problem}")
    plan = make_plan(arguments, settings, sysroot, privileged)
    log = open_log(settings.log) if settings.log is not None else None
    for text in idle(settings):
        note(text)
    if settings.max_read is not None:
        note("max_read is accepted, but has no effect in a run")
    with machine.most_descriptors():
        tree = open_tree(sysroot, settings)
        make_room(tree, plan)
    serve = _serve(tree, settings, plan, log)
    try:
        return Runner(plan, serve).run()
    except Refusal as error:
        raise RunFailed(str(error), error.status) from error
    except GuestError as error:
        raise RunFailed(str(error), OWN_FAILURE) from error
