"""The process between the runner and the program: it makes the root, starts the program, and waits.

It is forked, single-threaded, changes root with its child, and speaks with the runner alone. With a
terminal it is the session's leader, so that the program is a job that ^Z can stop. When the
runner is gone, however it went, it ends everything in the guest.

    runner -- monitor -- program                   usually
    runner -- monitor -- first process -- program  in a process namespace of its own
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import termios
import time
from collections.abc import Callable, Iterable
from typing import Final, NoReturn, final

from attrs import define, field

from sidecar import processes
from sysroot_fs.guest import identity, kernel, mounts
from sysroot_fs.guest.channel import Channel, Kind, Message
from sysroot_fs.guest.plan import OWN_FAILURE, Command, GuestError, Kernel, Plan, Refusal
from sysroot_fs.guest.survivors import GRACE_SECONDS, Survivors
from sysroot_fs.guest.terminal import open_pty
from sysroot_fs.null import open_null, to_null
from sysroot_fs.text import reason, shortage

_WATCHED: Final = (
    signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP,
    signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT,
)  # fmt: skip
"""Blocked in the monitor: those of a shared terminal are meant for the program."""


@final
@define(eq=False)
class Monitor:
    """One run as the monitor sees it.

    *runner* and *server* are the channels to those, *mask* is the signal mask that the program
    gets. *restore* gives the user's terminal back where there is no runner left to do it.
    """

    plan: Plan
    runner: Channel
    server: Channel
    mask: set[int]
    restore: Callable[[], object]
    _become: Callable[[Command, Iterable[int]], NoReturn] = field(init=False)
    """How the program's own process goes on."""
    _null: int = field(init=False, default=-1)
    _proc: int = field(init=False, default=-1)
    _slave: int | None = field(init=False, default=None)
    _survivors: Survivors | None = field(init=False, default=None)

    def run(self) -> NoReturn:
        """Live and end; never returns."""
        try:
            self._live()
        except GuestError as error:
            self._tell(Message(Kind.FAILED, text=str(error).encode("utf-8", "surrogateescape")))
        except BaseException as error:
            bug = f"the guest cannot be entered (this is a bug): {type(error).__name__}: {error}"
            text = shortage(error) or bug
            self._tell(Message(Kind.FAILED, text=text.encode("utf-8", "replace")))
        finally:
            os._exit(1)

    def _tell(self, message: Message) -> bool:
        return self.runner.send(message)

    def _live(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        self._null = open_null()
        self._proc = os.open(b"/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._unshare()
        kernel.wake_with_parent()
        if self.plan.root.own_processes:
            self._become_first()
        else:
            kernel.adopt_orphans()
        master = self._make_root()
        description = b""
        if not self.plan.root.own_processes:
            description = Survivors.describe(self._proc, os.getpid())
            self._survivors = Survivors.of(self._proc, description, frozenset({os.getpid()}))
        namespace = os.open(b"self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        fds = (namespace,) if master is None else (namespace, master)
        self._tell(Message(Kind.ENTERED, text=description, fds=fds))
        for fd in fds:
            os.close(fd)
        # The runner gets the terminal ready first.
        if self.runner.receive() is not None:
            program = self._start()
            self._wait(program)
        self._end_the_rest()
        self._tell(Message(Kind.DONE))
        while self.runner.receive() is not None:
            continue
        # The terminal is the runner's to give back; it may have been killed before it did.
        self.restore()
        os._exit(0)

    # --- the root ----------------------------------------------------------------------------

    def _unshare(self) -> None:
        root = self.plan.root
        flags = kernel.CLONE_NEWNS
        if root.hostname is not None:
            flags |= kernel.CLONE_NEWUTS
        if root.own_processes:
            flags |= kernel.CLONE_NEWPID
        if root.user_namespace:
            identity.unshare_as_user(flags, root.map_root)
        else:
            try:
                kernel.unshare(flags)
            except OSError as error:
                raise GuestError(f"no namespaces can be had: {reason(error)}") from error
        kernel.keep_mounts_to_ourselves()
        if root.hostname is not None:
            try:
                socket.sethostname(os.fsdecode(root.hostname))
            except OSError as error:
                raise GuestError(f"the host name cannot be set: {reason(error)}") from error

    def _become_first(self) -> None:
        """Go on as process 1 of the new process namespace; who forked it only waits for it."""
        first = os.fork()
        if first:
            self.runner.close()
            self.server.close()
            self._let_go()
            os.waitpid(first, 0)
            os._exit(0)
        kernel.die_with_parent()

    def _make_root(self) -> int | None:
        plan = self.plan
        top = mounts.mount_tree(plan.root, self._hand_over)
        # Here, while the server gets ready; after the change of root there is no file to import.
        from sysroot_fs.guest import command

        self._become = command.start
        # The terminal's name has to be true in the guest, so it is opened there if it can be.
        master = None
        if plan.terminal and plan.root.dev is Kernel.NONE:
            master = self._open_terminal()
        mounts.lay_over(top, plan.root)
        mounts.enter(top)
        os.close(top)
        if plan.terminal and master is None:
            master = self._open_terminal()
        return master

    def _hand_over(self, device: int, mount: int) -> None:
        namespace = os.open(b"/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        description = Survivors.describe_mount(mount)
        self.server.send(Message(Kind.MOUNT, text=description, fds=(device, namespace)))
        os.close(namespace)
        self.server.close()

    def _open_terminal(self) -> int:
        try:
            master, self._slave = open_pty(b"/dev")
        except OSError as error:
            raise GuestError(f"no pseudo-terminal can be had: {reason(error)}") from error
        return master

    # --- the program -------------------------------------------------------------------------

    def _start(self) -> int:
        """Start the program; its process id."""
        if self._slave is not None:
            os.setsid()
            fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
        reader, writer = os.pipe()
        held, hold = os.pipe()
        program = os.fork()
        if program == 0:
            os.close(hold)
            self._be_the_program(writer, held)
        os.close(writer)
        self._let_go()
        os.close(hold)
        os.close(held)
        if self._slave is not None:
            with contextlib.suppress(OSError):  # the child does it too; the first one counts
                os.setpgid(program, program)
        with open(reader, "rb") as pipe:
            early = self._await(reader, program)
            # With execve the pipe is closed before the program can do anything: whoever has seen
            # it do something, and sent a signal then, has that passed on.
            said = pipe.read() if _is_readable(reader) else None
        if said is None:
            # It has the signals blocked still, and nothing to clean up.
            os.kill(program, signal.SIGKILL)
            if early is not None:
                self._tell(Message(Kind.INTERRUPTED, early.number))
        elif said:
            status, _, text = said.partition(b" ")
            self._tell(Message(Kind.REFUSED, int(status), text))
        else:
            self._tell(Message(Kind.STARTED))
            if early is not None:
                self._obey(early, program)
        return program

    def _await(self, reader: int, program: int) -> Message | None:
        """Until the program has said how it starts, or a signal or the runner's end comes first.

        The guest may have it wait for ever (an /etc/passwd that is a fifo), or a ^Z that came
        before it had started. The value is what the runner has said of a signal that ends what has
        not started, or the terminal's end as one.
        """
        signals, runner = self._signals(), self.runner.fileno()
        while True:
            ready, _, _ = select.select([reader, runner, signals], [], [])
            if reader in ready:
                os.close(signals)
                return None
            if signals in ready:
                if signal.SIGHUP in processes.read_signals(signals):
                    message: Message | None = Message(Kind.SIGNAL, signal.SIGHUP)
                    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                        break
                    _signal_group(program)
                # Its end is left to be told later.
                stop = os.waitid(os.P_PID, program, os.WSTOPPED | os.WNOHANG)
                if stop is not None:
                    self._tell(Message(Kind.STOPPED, stop.si_status))
            if runner in ready:
                message = self.runner.receive()
                if message is not None and message.kind is Kind.CONTINUE:
                    self._obey(message, program)
                # Blocked signals come even if they are ignored, as by nohup(1).
                elif message is None or signal.getsignal(message.number) is not signal.SIG_IGN:
                    break
        os.close(signals)
        return message

    def _signals(self) -> int:
        """A descriptor that tells of children, and of the terminal's end."""
        wanted = [signal.SIGCHLD]
        if self._slave is not None:
            # The runner has hung up. The kernel tells the leader of the session alone.
            wanted.append(signal.SIGHUP)
        return processes.signal_descriptor(wanted)

    def _let_go(self) -> None:
        """From here on nobody but the program holds what the caller has given."""
        to_null(0, 1, 2, null=self._null)
        for fd in self.plan.inherited:
            os.close(fd)

    def _be_the_program(self, writer: int, held: int) -> NoReturn:
        """Become it, as soon as the other end of *held* is closed."""
        status, text = OWN_FAILURE, ""
        try:
            os.read(held, 1)
            os.close(held)
            if self._slave is not None:
                os.setpgid(0, 0)
                os.tcsetpgrp(self._slave, os.getpid())
                for fd in (0, 1, 2) if self.plan.stderr_too else (0, 1):
                    os.dup2(self._slave, fd)
            self._become(self.plan.command, self.mask)
        except Refusal as error:
            status, text = error.status, str(error)
        except GuestError as error:
            text = str(error)
        except BaseException as error:
            text = f"the command cannot be started (this is a bug): {error!r}"
        finally:
            os.write(writer, f"{status} {text}".encode("utf-8", "surrogateescape")[:4096])
            os._exit(status)

    def _wait(self, program: int) -> None:
        """Until the program has ended or the runner is gone."""
        events = select.poll()
        signals = self._signals()
        events.register(signals, select.POLLIN)
        events.register(self.runner, select.POLLIN)
        # It may have ended before anybody waited.
        if self._has_ended(program):
            return
        while True:
            ready = [fd for fd, _ in events.poll()]
            if signals in ready:
                if signal.SIGHUP in processes.read_signals(signals):
                    _signal_group(program, signal.SIGHUP)
                if self._has_ended(program):
                    return
            if self.runner.fileno() in ready:
                message = self.runner.receive()
                if message is None:
                    return
                self._obey(message, program)

    def _has_ended(self, program: int) -> bool:
        """Reap what has ended, the program or an orphan; tell the runner of the program."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return False
            if pid != program:
                continue
            if os.WIFSTOPPED(status):
                self._tell(Message(Kind.STOPPED, os.WSTOPSIG(status)))
                continue
            self._tell(Message(Kind.ENDED, status))
            return True

    def _obey(self, message: Message, program: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if message.kind is Kind.SIGNAL:
                # What was sent to the whole process group (by the terminal, by `kill %1`) has come
                # here as well: the program has got it. At a terminal of its own it is in another.
                shared = self._slave is None
                if not (shared and signal.sigtimedwait([message.number], 0)):
                    os.kill(program, message.number)
            elif message.kind is Kind.CONTINUE and self._slave is not None:
                with contextlib.suppress(OSError):
                    os.tcsetpgrp(self._slave, os.getpgid(program))
                _signal_group(program)

    # --- the end -----------------------------------------------------------------------------

    def _end_the_rest(self) -> None:
        """End what is left of the guest's processes."""
        if self._slave is not None:
            # The runner's side has heard everything only when nobody can write any more.
            os.close(self._slave)
        if self._survivors is not None:
            self._survivors.end()
            return
        # Process 1 of a namespace: -1 is everybody else in it, all of them descend from this one,
        # and the kernel kills the last.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(-1, number)
                os.kill(-1, signal.SIGCONT)
                deadline = time.monotonic() + GRACE_SECONDS / 2
                while time.monotonic() < deadline:
                    if os.waitpid(-1, os.WNOHANG)[0] == 0:
                        time.sleep(0.01)


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def _signal_group(program: int, *numbers: signal.Signals) -> None:
    """Signals for the program's process group, which may be stopped."""
    with contextlib.suppress(ProcessLookupError):
        for number in (*numbers, signal.SIGCONT):
            os.killpg(program, number)
