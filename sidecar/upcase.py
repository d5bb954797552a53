"""Which code points the volumes of others take for one: their upper-case tables, frozen.

NTFS and exFAT compare names UTF-16 unit by unit through a table that lies on the volume itself,
written when it was formatted; ZFS has its own in the driver. None of them is Python's `str.upper`:
no table knows what Unicode added after it was made, and none maps one character to two.

| table | what it is | how to take it again |
|---|---|---|
| NTFS | `$UpCase` as mkntfs 2022.10.3 writes it | `ntfscat -i 10 IMAGE` |
| EXFAT | the specification's recommended table (section 7.2.5.1, checksum E619D30D) | the first \
5836 bytes of the cluster that an `82` entry of the root names |
| ZFS | Unicode 5.0 without expansions, as `casesensitivity=insensitive` compares | \
`tests/test_kinds.py` creates every character on a real volume |

A row is ``first..last/step+delta`` in hexadecimal; `upper` applies a table.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

__all__ = ["EXFAT", "NTFS", "ZFS", "table", "upper"]

_ROW: Final = re.compile(r"([0-9a-f]+)(?:\.\.([0-9a-f]+))?(?:/2)?([+-][0-9a-f]+)")


@cache
def table(rows: str) -> dict[int, int]:
    """Code point -> upper-case code point, for those that have one."""
    found: dict[int, int] = {}
    for row in rows.split():
        parts = _ROW.fullmatch(row)
        assert parts is not None, row
        first, delta = int(parts[1], 16), int(parts[3], 16)
        last = int(parts[2] or parts[1], 16)
        found.update((code, code + delta) for code in range(first, last + 1, 1 + ("/2" in row)))
    return found


def upper(name: bytes, rows: str) -> bytes:
    """*name* with every character replaced by its upper case; other bytes stay as they are."""
    if name.isascii():
        return name.upper()
    text = name.decode("utf-8", "surrogateescape").translate(table(rows))
    return text.encode("utf-8", "surrogateescape")


NTFS: Final = """\
61..7a-20 e0..f6-20 f8..fe-20 ff+79 101..12f/2-1 133..137/2-1 13a..148/2-1 14b..177/2-1
17a..17e/2-1 180+c3 183..185/2-1 188-1 18c-1 192-1 195+61 199-1 19a+a3 19e+82 1a1..1a5/2-1 1a8-1
1ad-1 1b0-1 1b4..1b6/2-1 1b9-1 1bd-1 1bf+38 1c6-2 1c9-2 1cc-2 1ce..1dc/2-1 1dd-4f 1df..1ef/2-1
1f3-2 1f5-1 1f9..21f/2-1 223..233/2-1 23c-1 242-1 247..24f/2-1 250+2a1f 251+2a1c 253-d2 254-ce
256..257-cd 259-ca 25b-cb 260-cd 263-cf 268-d1 269-d3 26b+29f7 26f-d3 271+29fd 272-d5 275-d6
27d+29e7 280-da 283-da 288-da 289-45 28a..28b-d9 28c-47 292-db 371..373/2-1 377-1 37b..37d+82
3ac-26 3ad..3af-25 3b1..3c1-20 3c3..3cb-20 3cc-40 3cd..3ce-3f 3d7-8 3d9..3ef/2-1 3f2+7 3f8-1
3fb-1 430..44f-20 450..45f-50 461..481/2-1 48b..4bf/2-1 4c2..4ce/2-1 4cf-f 4d1..523/2-1
561..586-30 1d79+8a04 1d7d+ee6 1e01..1e95/2-1 1ea1..1eff/2-1 1f00..1f07+8 1f10..1f15+8
1f20..1f27+8 1f30..1f37+8 1f40..1f45+8 1f51..1f57/2+8 1f60..1f67+8 1f70..1f71+4a 1f72..1f75+56
1f76..1f77+64 1f78..1f79+80 1f7a..1f7b+70 1f7c..1f7d+7e 1f80..1f87+8 1f90..1f97+8 1fa0..1fa7+8
1fb0..1fb1+8 1fb3+9 1fc3+9 1fd0..1fd1+8 1fe0..1fe1+8 1fe5+7 1ff3+9 214e-1c 2170..217f-10 2184-1
24d0..24e9-1a 2c30..2c5e-30 2c61-1 2c65-2a2b 2c66-2a28 2c68..2c6c/2-1 2c73-1 2c76-1
2c81..2ce3/2-1 2d00..2d25-1c60 a641..a65f/2-1 a663..a66d/2-1 a681..a697/2-1 a723..a72f/2-1
a733..a76f/2-1 a77a..a77c/2-1 a77f..a787/2-1 a78c-1 ff41..ff5a-20
"""

EXFAT: Final = """\
61..7a-20 e0..f6-20 f8..fe-20 ff+79 101..12f/2-1 133..137/2-1 13a..148/2-1 14b..177/2-1
17a..17e/2-1 180+c3 183..185/2-1 188-1 18c-1 192-1 195+61 199-1 19a+a3 19e+82 1a1..1a5/2-1 1a8-1
1ad-1 1b0-1 1b4..1b6/2-1 1b9-1 1bd-1 1bf+38 1c6-2 1c9-2 1cc-2 1ce..1dc/2-1 1dd-4f 1df..1ef/2-1
1f3-2 1f5-1 1f9..21f/2-1 223..233/2-1 23a+2a2b 23c-1 23e+2a28 242-1 247..24f/2-1 253-d2 254-ce
256..257-cd 259-ca 25b-cb 260-cd 263-cf 268-d1 269-d3 26b+29f7 26f-d3 272-d5 275-d6 27d+29e7
280-da 283-da 288-da 289-45 28a..28b-d9 28c-47 292-db 37b..37d+82 3ac-26 3ad..3af-25 3b1..3c1-20
3c2-1f 3c3..3cb-20 3cc-40 3cd..3ce-3f 3d9..3ef/2-1 3f2+7 3f8-1 3fb-1 430..44f-20 450..45f-50
461..481/2-1 48b..4bf/2-1 4c2..4ce/2-1 4cf-f 4d1..513/2-1 561..586-30 1d7d+ee6 1e01..1e95/2-1
1ea1..1ef9/2-1 1f00..1f07+8 1f10..1f15+8 1f20..1f27+8 1f30..1f37+8 1f40..1f45+8 1f51..1f57/2+8
1f60..1f67+8 1f70..1f71+4a 1f72..1f75+56 1f76..1f77+64 1f78..1f79+80 1f7a..1f7b+70 1f7c..1f7d+7e
1f80..1f87+8 1f90..1f97+8 1fa0..1fa7+8 1fb0..1fb1+8 1fb3+9 1fcc-9 1fd0..1fd1+8 1fe0..1fe1+8
1fe5+7 1ffc-9 214e-1c 2170..217f-10 2184-1 24d0..24e9-1a 2c30..2c5e-30 2c61-1 2c68..2c6c/2-1
2c76-1 2c81..2ce3/2-1 2d00..2d25-1c60 ff41..ff5a-20
"""

ZFS: Final = """\
61..7a-20 b5+2e7 e0..f6-20 f8..fe-20 ff+79 101..12f/2-1 131-e8 133..137/2-1 13a..148/2-1
14b..177/2-1 17a..17e/2-1 17f-12c 180+c3 183..185/2-1 188-1 18c-1 192-1 195+61 199-1 19a+a3
19e+82 1a1..1a5/2-1 1a8-1 1ad-1 1b0-1 1b4..1b6/2-1 1b9-1 1bd-1 1bf+38 1c5-1 1c6-2 1c8-1 1c9-2
1cb-1 1cc-2 1ce..1dc/2-1 1dd-4f 1df..1ef/2-1 1f2-1 1f3-2 1f5-1 1f9..21f/2-1 223..233/2-1 23c-1
242-1 247..24f/2-1 253-d2 254-ce 256..257-cd 259-ca 25b-cb 260-cd 263-cf 268-d1 269-d3 26b+29f7
26f-d3 272-d5 275-d6 27d+29e7 280-da 283-da 288-da 289-45 28a..28b-d9 28c-47 292-db 345+54
37b..37d+82 3ac-26 3ad..3af-25 3b1..3c1-20 3c2-1f 3c3..3cb-20 3cc-40 3cd..3ce-3f 3d0-3e 3d1-39
3d5-2f 3d6-36 3d9..3ef/2-1 3f0-56 3f1-50 3f2+7 3f5-60 3f8-1 3fb-1 430..44f-20 450..45f-50
461..481/2-1 48b..4bf/2-1 4c2..4ce/2-1 4cf-f 4d1..513/2-1 561..586-30 1d7d+ee6 1e01..1e95/2-1
1e9b-3b 1ea1..1ef9/2-1 1f00..1f07+8 1f10..1f15+8 1f20..1f27+8 1f30..1f37+8 1f40..1f45+8
1f51..1f57/2+8 1f60..1f67+8 1f70..1f71+4a 1f72..1f75+56 1f76..1f77+64 1f78..1f79+80
1f7a..1f7b+70 1f7c..1f7d+7e 1f80..1f87+8 1f90..1f97+8 1fa0..1fa7+8 1fb0..1fb1+8 1fb3+9 1fbe-1c25
1fc3+9 1fd0..1fd1+8 1fe0..1fe1+8 1fe5+7 1ff3+9 214e-1c 2170..217f-10 2184-1 24d0..24e9-1a
2c30..2c5e-30 2c61-1 2c65-2a2b 2c66-2a28 2c68..2c6c/2-1 2c76-1 2c81..2ce3/2-1 2d00..2d25-1c60
ff41..ff5a-20 10428..1044f-28
"""
