"""What a failed handler means to the guest."""

from __future__ import annotations

import errno
import logging
from typing import Final

log = logging.getLogger(__name__)

_DEAD_VOLUME: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a volume answers whose server died, or dies meanwhile: it would look like a socket's."""


def errno_of(name: str, failure: Exception) -> int:
    """The guest's errno for what the handler *name* has raised.

    An OSError is the guest's own. Anything else is a bug: logged with its traceback, and EIO.
    """
    if isinstance(failure, OSError) and failure.errno:
        dead = failure.errno in _DEAD_VOLUME
        if dead or failure.errno == errno.EIO:
            log.error("%s: %s", name, failure)
        return errno.EIO if dead else failure.errno
    log.error("a bug in %s; the guest gets EIO", name, exc_info=failure)
    return errno.EIO
