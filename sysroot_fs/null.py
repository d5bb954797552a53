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
