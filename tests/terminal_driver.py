"""The smallest runner: gives a command a terminal of its own and relays until it has ended.

``python -m tests.terminal_driver [--no-reopen] -- COMMAND...`` ends with the
command's status, 128 + N for signal N. SIGTERM and SIGUSR1 end it by SystemExit and by an
exception that nobody expects. `--no-reopen` behaves as if the user's descriptors could not be
opened again (another user's terminal).
"""

import os
import select
import signal
import sys

from sysroot_fs.guest import relay
from sysroot_fs.guest.relay import Relay
from sysroot_fs.guest.terminal import Outer, open_pty, set_up


def start(command: list[str], slave: int) -> int:
    """Run the command as the leader of a session on the terminal; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.login_tty(slave)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(command[0], command)
    finally:
        os._exit(127)


def leave(number: int, _: object) -> None:
    """End in the way that the signal stands for."""
    if number == signal.SIGUSR1:
        raise RuntimeError("nobody expects this")
    raise SystemExit(128 + number)


def run(command: list[str]) -> int:
    """Relay until the command has ended; return its status."""
    # The pipe would take the number of one that is closed (`<&-`), and be read as the user's.
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(fd)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGWINCH, signal.SIGCONT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, leave)
    with Outer() as outer:
        master, slave = open_pty()
        set_up(master, outer)
        pid = start(command, slave)
        ended = os.pidfd_open(pid)
        status = 0
        with Relay(outer, master, slave) as relay:
            outer.raw()
            while not relay.done:
                poll = select.poll()
                wanted = relay.interests() | {reader: select.POLLIN}
                if ended >= 0:
                    wanted[ended] = select.POLLIN
                for fd, events in wanted.items():
                    poll.register(fd, events)
                pause = relay.timeout()
                for fd, events in poll.poll(None if pause is None else 1000 * pause + 1):
                    if fd == ended:
                        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                        os.close(ended)
                        ended = -1
                        relay.finish()
                    elif fd == reader:
                        numbers = os.read(reader, 4096)
                        if signal.SIGCONT in numbers:
                            outer.continued()
                        relay.resize()
                    else:
                        relay.handle(fd, events)
                if relay.hung_up or relay.reader_gone:
                    relay.hang_up()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    options, words = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    if "--no-reopen" in options:
        relay._reopened = lambda fd, flags: None
    sys.exit(run(words))
