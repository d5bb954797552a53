"""The process that the user has started: it forks the others, relays, and says how it ended.

    runner -- monitor -- program        the guest's mount namespace is the monitor's and below
           \\- server                    serves the tree from outside of it

All of them are forked before anything has started a thread; the runner itself never does. It
waits in one poll loop for the monitor's messages, signals, the server's end and, with a terminal,
what is to be copied. When it is killed the monitor ends the guest's processes (the server does,
where the monitor cannot), and with the last of them the mount namespace, the mount and the server
are gone: nothing of a run has a name on the host that could be left behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn, final

from attrs import define, field

from sidecar import processes
from sysroot_fs.fuse.guardian import guarded
from sysroot_fs.guest import kernel
from sysroot_fs.guest.channel import Channel, Kind, Message
from sysroot_fs.guest.monitor import Monitor
from sysroot_fs.guest.plan import OWN_FAILURE, GuestError, Plan, Refusal
from sysroot_fs.guest.relay import Relay
from sysroot_fs.guest.survivors import GRACE_SECONDS, Survivors
from sysroot_fs.guest.terminal import Outer, restore_terminal, set_up
from sysroot_fs.null import to_null
from sysroot_fs.text import sentence

_PASSED_ON: Final[frozenset[signal.Signals]] = frozenset({
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
})  # fmt: skip
_WATCHED: Final = _PASSED_ON | {signal.SIGWINCH, signal.SIGCONT}

_END_SECONDS: Final = 9.0
"""How long it may take to end all of a guest's processes: `survivors` gives up after less."""
_MONITOR_SECONDS: Final = 2.0
"""How long the monitor may take to end after its last word: with --pid the kernel ends the rest."""
_SERVER_SECONDS: Final = 5.0
"""How long the server may take to end after the mount is gone."""

_BURIAL_SECONDS: Final = GRACE_SECONDS + 1.0
"""How long the monitor may take to end the guest when the runner is gone."""

Serve = Callable[[Callable[[], int | None]], None]
"""Gets ready to serve the tree, then asks for the descriptor of its mount, which comes when there
is one, and serves until it is unmounted. None says that there will be no mount."""


@final
@define(eq=False)
class Runner:
    """One run. `run` returns the exit status."""

    plan: Plan
    serve: Serve
    _mask: set[int] = field(init=False, factory=set)
    _monitor: int = field(init=False, default=0)
    _server: int = field(init=False, default=0)
    _guest: Channel = field(init=False)
    _report: Channel = field(init=False)
    _outer: Outer | None = field(init=False, default=None)
    _relay: Relay | None = field(init=False, default=None)
    _description: bytes = field(init=False, default=b"")
    _namespace: int | None = field(init=False, default=None)
    _entered: bool = field(init=False, default=False)
    """Whether the monitor was told to start the program."""
    _started: bool = field(init=False, default=False)
    _interrupted: signal.Signals | None = field(init=False, default=None)
    _status: int | None = field(init=False, default=None)
    _failure: Exception | None = field(init=False, default=None)
    _deadline: float | None = field(init=False, default=None)
    _monitor_lives: bool = field(init=False, default=True)
    """Whether there is something to be heard from it still."""
    _server_lives: bool = field(init=False, default=True)

    def run(self) -> int:
        """Run the program; its exit status, 128 + N where signal N has killed it.

        Raises `Refusal` where it cannot be started, GuestError where the root cannot be made.

        The signals that are passed on stay blocked, for the caller is about to end: one that comes
        when the program has ended is too late, and does not take the place of its status.
        """
        if len(os.listdir("/proc/self/task")) > 1:
            raise RuntimeError("run must not be called in a process that has threads: it forks")
        self._mask = set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)))
        signals = processes.signal_descriptor(_WATCHED)
        try:
            if self.plan.terminal:
                self._outer = Outer()
            self._fork()
            self._loop(signals)
        finally:
            if self._outer is not None:
                self._outer.restore()
            self._end()
            os.close(signals)
        if self._failure is not None:
            raise self._failure
        if self._interrupted is not None:
            return 128 + self._interrupted
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    # --- the processes -----------------------------------------------------------------------

    def _fork(self) -> None:
        self._guest, monitors = Channel.pair()
        self._report, servers = Channel.pair()
        to_server, from_monitor = Channel.pair()
        self._server = os.fork()
        if self._server == 0:
            for channel in (self._guest, monitors, self._report, to_server):
                channel.close()
            self._be_the_server(servers, from_monitor)
        servers.close()
        from_monitor.close()
        self._monitor = os.fork()
        if self._monitor == 0:
            self._guest.close()
            self._report.close()
            Monitor(self.plan, monitors, to_server, self._mask, self._restorer()).run()
        monitors.close()
        to_server.close()

    def _restorer(self) -> Callable[[], object]:
        if self._outer is None or self._outer.saved is None:
            return lambda: None
        fd, saved = os.dup(self._outer.stdin), self._outer.saved
        return lambda: restore_terminal(fd, saved)

    def _be_the_server(self, report: Channel, from_monitor: Channel) -> NoReturn:
        status = 1
        try:
            # A session of its own: ^C and a hangup of the terminal are not for the server.
            os.setsid()
            os.chdir("/")
            to_null(0, 1, 2)
            for fd in self.plan.inherited:
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            with contextlib.ExitStack() as stack:
                self.serve(lambda: self._take_over(from_monitor, report, stack))
            status = 0
        except BaseException as error:
            text = sentence(error).encode("utf-8", "surrogateescape")
            report.send(Message(Kind.FAILED, text=text))
        finally:
            os._exit(status)

    def _take_over(
        self, from_monitor: Channel, report: Channel, stack: contextlib.ExitStack
    ) -> int | None:
        """The descriptor of the mount, None where none came; from here on in its user namespace.

        What has to be done at the end of the service is left to *stack*.
        """
        message = from_monitor.receive()
        if message is None:
            return None
        device, namespace = message.fds
        stack.enter_context(guarded(message.text))
        if self.plan.root.user_namespace:
            # Owners and callers then have the numbers that the guest sees.
            kernel.setns(namespace, kernel.CLONE_NEWUSER)
        os.close(namespace)
        # Not before: a process with threads cannot change its user namespace. Signals are for the
        # first thread.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Thread(
            target=_bury, args=(report, os.dup(device), message.text), daemon=True
        ).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return device

    # --- the loop ----------------------------------------------------------------------------

    def _loop(self, signals: int) -> None:
        """Until the monitor is gone and all output has been passed on."""
        server = os.pidfd_open(self._server)
        try:
            while self._monitor_lives or (self._relay is not None and not self._relay.done):
                wanted = {signals: select.POLLIN}
                if self._monitor_lives:
                    wanted[self._guest.fileno()] = select.POLLIN
                if self._server_lives:
                    wanted[server] = select.POLLIN
                if self._relay is not None:
                    wanted.update(self._relay.interests())
                ready = _poll(wanted, self._patience())
                if not ready and self._deadline is not None and time.monotonic() >= self._deadline:
                    break
                # The monitor first, and all of it: that the server has ended is no news when the
                # program has too, and is other news when it runs.
                while self._monitor_lives and _poll({self._guest.fileno(): select.POLLIN}, 0):
                    self._hear()
                if signals in ready:
                    for number in processes.read_signals(signals):
                        self._take(number)
                if server in ready:
                    self._server_ended()
                if self._relay is not None:
                    self._copy(self._relay, ready)
        finally:
            os.close(server)

    def _patience(self) -> float | None:
        """Seconds after which the loop has to look by itself."""
        times = []
        if self._deadline is not None:
            times.append(max(0.0, self._deadline - time.monotonic()))
        if self._relay is not None and (pause := self._relay.timeout()) is not None:
            times.append(pause)
        return min(times, default=None)

    def _copy(self, relay: Relay, ready: dict[int, int]) -> None:
        for fd, events in ready.items():
            relay.handle(fd, events)
        if relay.hung_up or relay.reader_gone:
            relay.hang_up()

    def _give_up(self, failure: Exception | None = None) -> None:
        """Have the monitor end everything."""
        if self._failure is None:
            self._failure = failure
        if self._deadline is None:
            self._guest.say_no_more()
            os.kill(self._monitor, signal.SIGCONT)  # it may have been stopped
            self._deadline = time.monotonic() + (_END_SECONDS if self._started else 1.0)

    def _hear(self) -> None:
        """Take one message from the monitor, or its end."""
        message = self._guest.receive()
        if message is None:
            self._monitor_lives = False
            if self._status is None and self._failure is None and self._interrupted is None:
                self._failure = GuestError("the process that waits for the command was killed")
            self._finish()
            return
        match message.kind:
            case Kind.ENTERED:
                self._description = message.text
                # Held until nothing is left in it: the kernel gives its number, and that of the
                # mount, to somebody else's run as soon as they are free.
                self._namespace, *masters = message.fds
                if self._outer is not None:
                    (master,) = masters
                    set_up(master, self._outer)
                    self._relay = Relay(self._outer, master)
                    self._outer.raw()
                self._let_go()
                self._guest.send(Message(Kind.CONTINUE))
                self._entered = True
            case Kind.INTERRUPTED:
                self._interrupted = signal.Signals(message.number)
                self._give_up()
            case Kind.STARTED:
                self._started = True
            case Kind.STOPPED:
                self._stop()
            case Kind.ENDED:
                self._status = message.number
                if message.number:
                    # A program whose files are gone gets SIGBUS, or fails in its own words.
                    self._failure = self._failure or self._death_of_server(in_order=True)
                self._finish()
            case Kind.DONE:
                self._monitor_lives = False
                self._finish()
            case Kind.REFUSED | Kind.FAILED:
                text = os.fsdecode(message.text)
                told: GuestError | Refusal = GuestError(text)
                if message.kind is Kind.REFUSED and message.number != OWN_FAILURE:
                    told = Refusal(message.number, text)
                # On a dead mount no program can be looked at.
                self._failure = self._failure or self._death_of_server(in_order=True) or told

    def _finish(self) -> None:
        if self._relay is not None:
            # The end comes when the monitor has ended whoever else could write.
            self._relay.finish(seconds=_END_SECONDS, quiet=_END_SECONDS)

    def _take(self, number: signal.Signals) -> None:
        if number is signal.SIGWINCH or number is signal.SIGCONT:
            if self._outer is not None and self._relay is not None:
                if number is signal.SIGCONT:
                    self._outer.continued()
                self._relay.resize()
        elif number is signal.SIGHUP and self._relay is not None and self._relay.hung_up_now():
            self._relay.hang_up()
        elif self._entered:
            # Whether the program has started is the monitor's to say: its word may be under way.
            self._guest.send(Message(Kind.SIGNAL, number))
            if not self._started:
                os.kill(self._monitor, signal.SIGCONT)  # it may have been stopped
        # Blocked signals come even if they are ignored, as by nohup(1).
        elif signal.getsignal(number) is not signal.SIG_IGN:
            self._interrupted = number
            self._give_up()

    def _stop(self) -> None:
        """The program was stopped by ^Z: so is this, until the shell goes on with it."""
        if self._outer is None or self._relay is None:
            return
        self._relay.drain(seconds=1.0)
        self._outer.restore()
        os.kill(0, signal.SIGTSTP)
        self._outer.raw()
        self._relay.resize()
        self._guest.send(Message(Kind.CONTINUE))

    def _let_go(self) -> None:
        """Whoever reads or writes the other ends must deal with the program alone, from its start.

        It could close its own otherwise before this process has, and the other end not hear of it.
        """
        for fd in self.plan.inherited:
            os.close(fd)
        if self._outer is None:
            to_null(0, 1)

    def _server_ended(self) -> None:
        self._server_lives = False
        if self._status is None and self._failure is None and self._interrupted is None:
            self._give_up(self._death_of_server())

    def _death_of_server(self, in_order: bool = False) -> GuestError | None:
        """The server's end as a failure, None where it lives.

        With *in_order* the monitor may be gone already, whose end lets the server end in order.
        """
        if not self._server:
            return None
        # The mount is dead, and the program with it, a moment before the process can be waited for.
        pid, status = os.waitpid(self._server, 0 if _is_ending(self._server) else os.WNOHANG)
        if not pid:
            return None
        self._server, self._server_lives = 0, False
        said = select.select([self._report], [], [], 0)[0] and self._report.receive()
        if said:
            return GuestError(os.fsdecode(said.text))
        how = os.waitstatus_to_exitcode(status)
        if in_order and how == 0:
            return None
        how_said = f"signal {-how}" if how < 0 else f"exit status {how}"
        then = ": the command was ended" if self._started else ""
        return GuestError(f"the server of the guest root has died ({how_said}){then}")

    # --- the end -----------------------------------------------------------------------------

    def _end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        if self._server:
            # Stopped in the middle of a request it would keep its caller from ending, even killed.
            os.kill(self._server, signal.SIGCONT)
        if self._monitor:
            self._guest.close()
            # It takes no other signal.
            self._wait_for(self._monitor, _MONITOR_SECONDS, signal.SIGKILL)
        if self._description:
            proc = os.open(b"/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            Survivors.of(proc, self._description).kill()
            os.close(proc)
        if self._namespace is not None:
            # Open until here, so that its number means no other run's; with it the mount goes.
            os.close(self._namespace)
        if self._server:
            self._report.close()
            self._wait_for(self._server, _SERVER_SECONDS, signal.SIGTERM, signal.SIGKILL)

    def _wait_for(self, pid: int, seconds: float, *numbers: signal.Signals) -> None:
        process = os.pidfd_open(pid)
        # First of all it may go on, if somebody has stopped it.
        for number in (signal.SIGCONT, *numbers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if select.select([process], [], [], seconds)[0]:
                break
            seconds = 2.0
        os.close(process)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _is_ending(pid: int) -> bool:
    """Whether the child *pid* is on its way out: the kernel's PF_EXITING."""
    return bool(int(processes.process_fields(pid)[6]) & 4)


def _bury(runner: Channel, device: int, mount: bytes) -> None:
    """In the server: where the runner is gone and the monitor does not end the guest, do it.

    It may have been killed too, or stopped. When all is well the mount goes first, and with it
    this process.
    """
    kernel.wake_with_parent()
    runner.receive()
    time.sleep(_BURIAL_SECONDS)
    proc = os.open(b"/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    Survivors(proc, b"", mount, current=lambda: not _poll({device: 0}, 0)).kill()
    os.close(proc)


def _poll(wanted: dict[int, int], seconds: float | None) -> dict[int, int]:
    poll = select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    # Rounded up: rounded down, the last millisecond would be spent spinning.
    return dict(poll.poll(1000 * seconds + 1 if seconds else seconds))
