"""An fsync that the volume fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.children import code_of
from tests.matrix.death.tracing import Call, failing
from tests.mounts import Mounter


def test_a_failed_fsync_does_not_keep_the_file_open(mounted: Mounter, workplace: Path) -> None:
    """Closed by the guest, it is closed by the server too."""
    mount = mounted()
    mount.expects(r" ERROR sysroot_fs\.fuse\.failures: fsync: \[Errno 5\] ")
    fds = Path(f"/proc/{mount.process.pid}/fd")
    (mount.point / "file").write_text("content")
    before = len(list(fds.iterdir()))
    for _ in range(5):
        fd = os.open(mount.point / "file", os.O_WRONLY)
        with failing(mount.process.pid, workplace / "trace", Call("fsync", 1), "EIO"):
            assert code_of(os.fsync, fd) == errno.EIO
        os.close(fd)
    # The kernel says without waiting that a file is closed; an answer later it has been heard.
    os.listdir(mount.point)
    assert len(list(fds.iterdir())) <= before + 1


def test_without_a_thread_it_is_done_all_the_same(mounted: Mounter) -> None:
    """Too many processes are no reason to say that what was written is lost."""
    mount = mounted(module="tests.no_sync_threads")
    with open(mount.point / "file", "wb") as file:
        file.write(b"content")
        file.flush()
        assert code_of(os.fsync, file.fileno()) == 0
    assert (mount.sysroot / "file").read_bytes() == b"content"
