"""Paths and errors as people read them.

Names are bytes and may hold anything but `/` and NUL. What is shown must stay on one line and
must not move the terminal's cursor, so everything unprintable is shown as an escape.
"""

import errno
import os


def shown(path: bytes) -> str:
    """`path` for a sentence: UTF-8 where it is that, `\\xNN` for every other byte."""
    text = path.decode("utf-8", "backslashreplace")
    # Not the codec unicode_escape: Python imports it at its first use, and after a change of root
    # there is nothing to import it from.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: OSError) -> str:
    """What the system said, in lower case: `permission denied`."""
    if error.errno is None:
        return str(error)
    text = os.strerror(error.errno)
    return text[:1].lower() + text[1:]


_SHORTAGE = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_THREAD = "can't start new thread"  # Python's own words, in a RuntimeError


def shortage(error: BaseException) -> str | None:
    """A sentence where *error* says that something has run out, None for any other."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(shortage, error.exceptions)), None)
    if isinstance(error, OSError) and error.errno in _SHORTAGE:
        what = reason(error)
    elif isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        return f"{reason(error)}: where the output goes, or another volume, is full"
    elif isinstance(error, RuntimeError) and str(error) == _NO_THREAD:
        what = "no thread can be started"
    else:
        return None
    return f"{what}: a limit of the caller or of the machine is reached (ulimit -a)"


class Sentence(Exception):
    """Base of the failures whose message is a sentence for the user."""


def sentence(error: BaseException) -> str:
    """An exception as a sentence for the user; a group of one is that one."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return sentence(error.exceptions[0])
    if isinstance(error, Sentence):
        return str(error)
    short = shortage(error)
    if short is not None:
        return short
    if isinstance(error, OSError):
        name = error.filename
        where = f": {shown(os.fsencode(name))}" if isinstance(name, str | bytes) else ""
        return reason(error) + where
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def errno_name(number: int) -> str:
    """`ENOENT` for 2; the number itself where it has no name."""
    return errno.errorcode.get(number, str(number))


def absolute(path: bytes) -> bytes:
    """`path` made absolute against the working directory, which a daemon leaves.

    `..` is taken out through the real path: taking it out of the text alone goes wrong after a
    symlink. What leads nowhere, an empty path or any in a directory that was removed, stays as it
    is: whoever opens it says so.
    """
    try:
        joined = path if path[:1] in (b"", b"/") else os.path.join(os.getcwdb(), path)
    except FileNotFoundError:
        return path
    if b".." in joined.split(b"/"):
        return os.path.realpath(joined)
    return os.path.normpath(joined).replace(b"//", b"/") if joined else joined


def json_fields(key: str, value: bytes) -> dict[str, str]:
    """A name for JSON: text, and where it is not UTF-8 its bytes in hexadecimal as well."""
    try:
        return {key: value.decode("utf-8")}
    except UnicodeDecodeError:
        return {key: value.decode("utf-8", "backslashreplace"), f"{key}_hex": value.hex()}
