"""``python -m tests.caseless MOUNTPOINT``: serve an empty volume there until it is unmounted."""

from __future__ import annotations

import sys

from tests.caseless.memory import serve

if len(sys.argv) != 2:
    sys.exit("usage: python -m tests.caseless MOUNTPOINT")
serve(sys.argv[1])
