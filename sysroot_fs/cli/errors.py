"""The failures that a user of the command can meet, one class each.

The message is one sentence without a full stop that says what is wrong and, where something
can be done, what to do next. `main` prints it after `sysroot-fs: ` and exits with `status`.
"""

from sysroot_fs.text import Sentence


class CommandError(Sentence):
    """Base of all of them; never raised itself."""

    status: int = 1


class UsageError(CommandError):
    """The command line itself is wrong: an unknown option, a bad value, a missing argument."""

    status = 2


class SysrootError(CommandError):
    """SYSROOT cannot serve as a guest root."""


class MountpointError(CommandError):
    """MOUNTPOINT cannot be mounted on."""


class FuseUnavailable(CommandError):
    """This machine, or this user on it, cannot mount a FUSE filesystem."""


class LogError(CommandError):
    """The log file cannot be written."""


class MountFailed(CommandError):
    """Everything looked right, and still the mount did not come up."""


class RunFailed(CommandError):
    """The guest root cannot be entered, or the command cannot be started in it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
