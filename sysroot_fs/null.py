"""/dev/null in place of what a process shall no longer read or write."""

import os


def open_null() -> int:
    """A descriptor of /dev/null, for who may not reach it later."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def to_null(*descriptors: int, null: int | None = None) -> None:
    """Put /dev/null in the place of *descriptors*, open or closed; *null* is one of `open_null`."""
    source = open_null() if null is None else null
    for descriptor in descriptors:
        os.dup2(source, descriptor)
    # The lowest free number is one of them where they were closed.
    if null is None and source not in descriptors:
        os.close(source)


def fill_closed() -> frozenset[int]:
    """Open /dev/null in the place of those of 0, 1 and 2 that are closed; these.

    What is opened next would get their numbers otherwise, and be taken for input and output.
    """
    closed = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            closed.add(fd)
            # The lowest free number is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    return frozenset(closed)
