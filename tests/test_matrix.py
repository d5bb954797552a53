"""The cut of the matrix: every row and column of the table, every item of every suite, once.

What is skipped, and why, stands in the run's summary with the totals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.matrix import report, table
from tests.matrix.suite import Reference
from tests.matrix.table import Job


@pytest.fixture(scope="session")
def reference(session_workplace: Path) -> Reference:
    """Plain chroots for all cells."""
    return Reference(session_workplace)


@pytest.mark.patience(600)
@pytest.mark.parametrize("job", table.cut(), ids=lambda job: job.cell.name)
def test_matrix(
    job: Job,
    workplace: Path,
    reference: Reference,
    record_property: Callable[[str, object], None],
) -> None:
    """No item of the cell fails."""
    result = table.run_job(job, workplace, reference)
    text = report.as_text([result], partial(table.alone, cut=True))
    record_property("matrix", f"{result.cell.name:48} {result.line()}\n{text}")
    assert not result.tally.failures, text
