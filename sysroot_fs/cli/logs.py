"""Where the log of a mount goes: a file, else syslog, else nowhere; in the foreground, stderr.

The file is opened before the process goes to the background, so that a path that cannot be
written is the user's error and not a silent loss.
"""

import contextlib
import logging
import os
import sys
from typing import Final

from sysroot_fs.cli.errors import LogError
from sysroot_fs.text import reason, shown

SYSLOG: Final = "/dev/log"
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_log(path: bytes) -> logging.FileHandler:
    """A handler that appends to `path`; raises LogError."""
    try:
        handler = logging.FileHandler(
            os.fsdecode(path), encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise LogError(f"the log {shown(path)} cannot be written: {reason(error)}") from error
    handler.setFormatter(logging.Formatter(FORMAT))
    return handler


def _stderr() -> logging.Handler:
    # A descriptor of its own: descriptor 2 is held back while the mount starts.
    stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("sysroot-fs: %(message)s"))
    return handler


def _background() -> logging.Handler:
    if os.path.exists(SYSLOG):
        # Imported here: a log that goes elsewhere needs no sockets.
        from logging.handlers import SysLogHandler

        with contextlib.suppress(OSError):
            handler = SysLogHandler(SYSLOG, facility="daemon")
            handler.setFormatter(logging.Formatter(f"sysroot-fs[{os.getpid()}]: %(message)s"))
            return handler
    return logging.NullHandler()


def choose_handler(file: logging.Handler | None, foreground: bool) -> logging.Handler:
    """`file` where there is one, else what suits; call it in the process that will log."""
    return file or (_stderr() if foreground else _background())


def start_logging(handler: logging.Handler, debug: bool) -> None:
    """Make `handler` the one that everything logs to, and tracebacks stay out of the terminal."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    to_file = isinstance(handler, logging.FileHandler)
    root.setLevel(logging.DEBUG if debug else logging.INFO if to_file else logging.WARNING)
    logging.raiseExceptions = False
    sys.stderr.flush()


def note(text: str) -> None:
    """Tell the user something that is no error."""
    print(f"sysroot-fs: note: {text}", file=sys.stderr)
