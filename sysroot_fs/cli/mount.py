"""`sysroot-fs mount`: check everything, go to the background, serve until unmounted.

The order matters: what can be checked is checked in the process that the user started; then it
forks, before the binding or the event loop can start a thread; then the child opens the roots
and mounts, and the parent exits with what came of it.
"""

import argparse
import logging
import os
import signal
from collections.abc import Callable

import attrs

from sidecar import processes
from sysroot_fs.cli import daemon, machine, preflight
from sysroot_fs.cli.doors import chosen, file_options, load_door
from sysroot_fs.cli.errors import MountFailed
from sysroot_fs.cli.logs import choose_handler, note, open_log, start_logging
from sysroot_fs.cli.options import Group, Settings, add_options, collect, describe, idle
from sysroot_fs.cli.trees import open_tree
from sysroot_fs.fuse.options import FileOptions, MountOptions
from sysroot_fs.null import fill_closed
from sysroot_fs.text import absolute, reason, sentence, shown

EXAMPLES = """\
examples:
  sysroot-fs mount guest /mnt/guest
      the guest root in ./guest, over this machine's own files
  sysroot-fs mount guest /mnt/guest -o ro,fallback=none
      the guest root alone, unchangeable
  sysroot-fs mount guest /mnt/guest --fallback safe --host-writes ro
      the host's files too, but never its programs, and only to read
  fusermount3 -u /mnt/guest
      unmount it (umount does it as well, for root)
"""


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "mount",
        help="show a guest root over the host at a directory",
        description="Show the guest root SYSROOT at the directory MOUNTPOINT, with the host's\n"
        "files where the guest root has none. The command returns when the mount is up.",
        epilog=f"{describe()}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sysroot", metavar="SYSROOT", help="the directory that holds the guest")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    parser.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground until unmounted"
    )
    parser.add_argument(
        "-d", "--debug", action="store_true", help="log everything; stays in the foreground too"
    )
    add_options(parser, Group)
    parser.set_defaults(run=run)


def mount_options(settings: Settings, sysroot: bytes) -> MountOptions:
    """The settings that are the mount's business and not the tree's."""
    same = set(attrs.fields_dict(MountOptions)) & set(attrs.fields_dict(Settings))
    return MountOptions(
        source=settings.fsname or sysroot, **{name: getattr(settings, name) for name in same}
    )


@machine.most_descriptors()
def _serve(
    sysroot: bytes,
    mountpoint: bytes,
    settings: Settings,
    served: FileOptions,
    debug: bool,
    ready: Callable[[], None],
) -> None:
    """Open the tree, mount it, serve it; raises a CommandError when the mount does not come up."""
    serve = load_door(settings.door)
    tree = open_tree(sysroot, settings)
    up = False
    try:
        with daemon.ErrorsHeldBack(active=not debug) as held:

            def on_ready() -> None:
                nonlocal up
                up = True
                # From here on descriptor 2 is the user's again, or /dev/null.
                held.release()
                ready()

            try:
                options = mount_options(settings, sysroot)
                serve(tree, mountpoint, options, served, on_ready, debug)
            except (Exception, SystemExit) as error:
                if up:
                    raise MountFailed(
                        f"the server of {shown(mountpoint)} stopped: {sentence(error)}"
                    ) from error
                because = held.said() or sentence(error)
                raise MountFailed(f"{shown(mountpoint)} cannot be mounted on: {because}") from error
    finally:
        tree.close()


def _check_answers(mountpoint: bytes) -> None:
    """The mount is there and its server has answered a request; raises MountFailed.

    A mount stands before the kernel and libfuse have agreed on a protocol, and when they do not
    agree the server ends without an error.
    """
    name = shown(mountpoint)
    try:
        # Always sent to the server, unlike stat, and leaves nothing in the kernel's caches.
        os.statvfs(mountpoint)
    except OSError as error:
        raise MountFailed(f"{name} was mounted, but does not answer: {reason(error)}") from error
    if preflight.mount_at(os.path.realpath(mountpoint)) is None:
        raise MountFailed(f"{name} was mounted, but its server ended at once (log=FILE says why)")


def run(arguments: argparse.Namespace) -> int:
    """Mount; the value is the exit status."""
    fill_closed()
    settings = collect(arguments.settings or (), privileged=os.geteuid() == 0)
    sysroot = absolute(os.fsencode(arguments.sysroot))
    mountpoint = absolute(os.fsencode(arguments.mountpoint))
    preflight.check_all(sysroot, mountpoint, settings)
    log_file = open_log(settings.log) if settings.log is not None else None
    if not preflight.is_empty(mountpoint):
        note(f"{shown(mountpoint)} is not empty; what it holds is hidden until it is unmounted")
    for text in idle(settings):
        note(text)
    if settings.max_read is not None and chosen(settings.door) == "pyfuse3":
        note("max_read is accepted, but pyfuse3 cannot hand it to the kernel: no effect")
    served = file_options(settings)
    foreground = arguments.foreground or arguments.debug

    def work(ready: Callable[[], None]) -> None:
        start_logging(choose_handler(log_file, foreground), arguments.debug)
        if log_file is not None and log_file.stream is not None and not foreground:
            # What libfuse has to say later goes where the rest of the log goes.
            os.dup2(log_file.stream.fileno(), 2)
        _serve(sysroot, mountpoint, settings, served, arguments.debug, ready)
        logging.getLogger(__name__).info("%s is unmounted", shown(mountpoint))

    if foreground:
        work(lambda: None)
    else:
        daemon.run_detached(work)
        # The command has succeeded: a signal that comes while it ends would say that it has not.
        signal.pthread_sigmask(signal.SIG_BLOCK, processes.ENDING)
        _check_answers(mountpoint)
    return 0
