"""Descriptors that close themselves."""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path

import pytest

from sidecar.descriptor import Descriptor


@pytest.mark.parametrize(("code", "said"), [(errno.ENOTCONN, False), (errno.EBADF, True)])
def test_who_is_told_that_closing_failed(
    code: int, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody of a volume that died; of a descriptor that was not ours any more, everybody."""
    told: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(what.exc_value))
    fd = os.open(tmp_path, os.O_RDONLY)
    close = os.close

    def fail(number: int) -> None:
        close(number)
        raise OSError(code, "failed")

    monkeypatch.setattr(os, "close", fail)
    descriptor = Descriptor(fd)
    del descriptor
    gc.collect()
    assert bool(told) is said
    assert not os.path.exists(f"/proc/self/fd/{fd}")
