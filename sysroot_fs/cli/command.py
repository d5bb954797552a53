"""`main`: from the arguments to an exit status, and no traceback on the way.

0 is success, 1 that something could not be done, 2 that the command line is wrong, 130 that the
user pressed ^C.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
from typing import Final, NoReturn

from sysroot_fs import __version__
from sysroot_fs.cli.errors import CommandError, RunFailed, UsageError
from sysroot_fs.null import to_null
from sysroot_fs.text import sentence, shortage, shown

DESCRIPTION = """\
Use a directory that holds a Linux guest root (a "sysroot") as if it were laid over this machine's
own files: what the sysroot has is the guest's, what it lacks is the host's. The names in it are
byte-exact Linux names even on a volume that takes Foo and foo for one name.
"""

VERBS: Final = ("run", "mount", "status", "resolve", "doctor", "check")
"""Each is a module of this package, with an `add_parser`."""

EXAMPLES = """\
examples:
  sysroot-fs doctor guest               can ./guest be mounted here, and what would it cost?
  sysroot-fs mount guest /mnt/guest     show it at /mnt/guest
  chroot /mnt/guest /bin/sh             look around in it
  sysroot-fs status                     what is mounted here, and how is it?
  sysroot-fs resolve guest /etc/hosts   where does this path of the guest's lead?
  fusermount3 -u /mnt/guest             unmount it
  sysroot-fs check --for exfat guest    which names would not survive on an exFAT volume?

`sysroot-fs VERB --help` says more about one verb.
"""


class _Parser(argparse.ArgumentParser):
    """Errors are UsageError, one sentence, instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` says more)")


def versions() -> str:
    """What `--version` says: everything that a report about a problem needs."""
    from sysroot_fs.cli import machine

    return (
        f"sysroot-fs {__version__}, pyfuse3 {machine.pyfuse3_version() or 'missing'}, "
        f"libfuse {machine.libfuse_version() or 'missing'}, kernel {machine.kernel()}"
    )


class _Version(argparse.Action):
    """Print the versions, which are looked up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(versions())
        parser.exit()


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, or as much of it as *verb* needs: a start waits for all the others.

    What is no verb gets the whole, which says what is wrong with it.
    """
    parser: argparse.ArgumentParser = _Parser(
        prog="sysroot-fs",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="the versions of all the parts, then exit"
    )
    # The verbs' parsers are of the same class: argparse takes it from here.
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    for name in (verb,) if verb in VERBS else VERBS:
        importlib.import_module(f"sysroot_fs.cli.{name}").add_parser(verbs)
    return parser


def _run(argv: list[str]) -> int:
    try:
        arguments, unknown = build_parser(argv[0] if argv else None).parse_known_args(argv)
        if unknown:
            raise UsageError(
                f"unrecognized arguments: {' '.join(unknown)} "
                f"(`sysroot-fs {arguments.verb} --help` says more)"
            )
        status = int(arguments.run(arguments))
        sys.stdout.flush()
    except SystemExit as error:
        # --help and --version end so.
        sys.stdout.flush()
        return error.code if isinstance(error.code, int) else 0
    return status


def _say(text: str) -> None:
    """One line for the user, whatever *text* holds; nobody may be there to read it."""
    try:
        line = shown(text.encode("utf-8", "surrogateescape"))
        print(f"sysroot-fs: {line}", file=sys.stderr, flush=True)
    except OSError:
        # The interpreter would try again at its exit, and change the exit status.
        with contextlib.suppress(OSError):
            to_null(2)


def _own_failure(is_run: bool) -> int:
    """The exit status where it is this program that has failed."""
    if not is_run:
        return 1
    # Imported here: nothing else of the guest's is needed for the other verbs.
    from sysroot_fs.guest.plan import OWN_FAILURE

    return OWN_FAILURE


def main(argv: list[str] | None = None) -> int:
    """Run the command; `argv` is without the program's name. The value is the exit status."""
    # Closed ones are None in Python, and what is printed to None goes to standard output.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    # Paths that are not UTF-8 come out as the bytes that they are.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else None)
    argv = sys.argv[1:] if argv is None else argv
    is_run = argv[:1] == ["run"]
    try:
        return _run(argv)
    except BrokenPipeError:
        # `sysroot-fs doctor X | head`: nobody listens any more, and the interpreter's own flush
        # at exit must not complain about it either.
        to_null(sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        _say(str(error))
        is_own = is_run and not isinstance(error, RunFailed)
        return _own_failure(is_run) if is_own else error.status
    except (Exception, BaseExceptionGroup) as error:
        if os.environ.get("SYSROOT_FS_TRACEBACK"):
            raise
        bug = f"{sentence(error)} (this is a bug: SYSROOT_FS_TRACEBACK=1 shows where)"
        _say(shortage(error) or bug)
        return _own_failure(is_run)
