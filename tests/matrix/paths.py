"""The cases for paths and names as the guest's programs use them: links, directories, programs.

The scripts stand in ``paths_cases/*.txt``, as `case_files` reads them. What system calls say by
themselves, and what names there are in bulk, is in `path_calls` and `names`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.matrix.case_files import read_cases

__all__ = ["CASES"]

CASES: Final = read_cases(Path(__file__).with_name("paths_cases"), {})
