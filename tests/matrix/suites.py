"""Every suite of the matrix."""

from __future__ import annotations

from typing import Final

from tests.matrix import coreutils, death, fallback_items, names, path_calls, paths
from tests.matrix.busybox import Busybox
from tests.matrix.calls import Calls
from tests.matrix.fallback import Fallback
from tests.matrix.gnu_coreutils import GnuCoreutils
from tests.matrix.hostile import HOSTILE
from tests.matrix.lines import Lines
from tests.matrix.parity import Parity
from tests.matrix.races import RACES
from tests.matrix.soak import SOAK
from tests.matrix.suite import Suite

SUITES: Final[tuple[Suite, ...]] = (
    Lines("coreutils", parts=coreutils.CASES),
    HOSTILE,
    RACES,
    SOAK,
    Fallback("fallback", places=(), parts=fallback_items.ITEMS),
    Parity("parity"),
    *death.SUITES,
    Busybox(),
    GnuCoreutils(),
    Calls("names", guests=(), parts=names.SCENARIOS),
    Calls("path-calls", guests=(), parts=path_calls.SCENARIOS, both_layers=True),
    Lines("paths", parts=paths.CASES),
)
