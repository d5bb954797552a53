"""A tree like a Windows SDK as it was unpacked: 30 000 headers that include each other carelessly.

`make(top)` writes it. Directories and headers are spelled as somebody once liked, and every
`#include` writes another spelling than the one that is stored, as the real ones do. The content is
valid C with `#pragma once`, so that a header that were two files would be an error. Everything is
made by rule: two runs write the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

VERSION: Final = "10.0.22621.0"
COUNT: Final = 30_000
"""Headers in the tree, those with well-known names included."""

# Besides those with well-known names.
_PARTS: Final = {"um": 11_996, "Shared": 3_997, "winrt": 8_000, "ucrt": 2_000, "cppwinrt": 4_000}
_WORDS: Final = ("Win", "User", "Shell", "Direct", "Audio", "Net", "Crypt", "Media", "Com", "Rpc")
_KINDS: Final = ("Base", "Types", "Api", "Def", "Ext", "Error", "Impl")

# As they are stored, and what is in them.
_KNOWN: Final = {
    "um/Windows.h": "#include <WinDef.h>\n#include <WINBASE.H>\n#include <winuser.h>\n",
    "um/WinBase.h": "#include <MinWinDef.h>\nDWORD GetLastError(void);\n",
    "um/WinUser.h": "#include <windef.h>\ntypedef struct { RECT area; HWND window; } PAINT;\n",
    "um/WinSock2.h": "#include <windows.h>\n#include <WS2Def.h>\n",
    "Shared/windef.h": "#include <minwindef.h>\ntypedef struct { LONG left, top; } RECT;\n",
    "Shared/minwindef.h": "typedef unsigned long DWORD;\ntypedef long LONG;\ntypedef void *HWND;\n",
    "Shared/ws2def.h": "#include <MINWINDEF.H>\ntypedef struct { DWORD family; } SOCKADDR;\n",
}

INCLUDE_DIRECTORIES: Final = tuple(f"include/{VERSION}/{part.upper()}" for part in _PARTS)
"""Where a compiler is told to look, below the top: in other spellings than stored."""


def _spell(number: int, turn: int) -> str:
    """The name of a generated header, in one of four spellings."""
    stem = f"{_WORDS[number % 10]}{_KINDS[number % 7]}{number}"
    spellings = (f"{stem}.h", f"{stem.lower()}.h", f"{stem.upper()}.H", f"{stem.swapcase()}.h")
    return spellings[turn % 4]


def _headers(part: str, numbers: range) -> Iterator[tuple[str, str]]:
    """Name and content of the headers of a part; each includes the one of half its number."""
    for path, text in _KNOWN.items():
        if path.startswith(f"{part}/"):
            yield path.partition("/")[2], f"#pragma once\n{text}"
    for number in numbers:
        half = number // 2
        include = f"#include <{_spell(half, half + 1)}>\n" if half else ""
        yield (
            _spell(number, number),
            f"#pragma once\n#include <WINDEF.h>\n{include}"
            f"typedef struct {{ LONG value; }} HEADER_{number};\n",
        )


def make(top: Path) -> None:
    """Write the tree below the new directory *top*: `Include/10.0.22621.0/um/Windows.h` ..."""
    first = 1
    for part, count in _PARTS.items():
        directory = top / "Include" / VERSION / part
        directory.mkdir(parents=True)
        held = os.open(directory, os.O_PATH)
        try:
            for name, text in _headers(part, range(first, first + count)):
                fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=held)
                os.write(fd, text.encode())
                os.close(fd)
        finally:
            os.close(held)
        first += count


def program(headers: int = 200) -> str:
    """C that includes the well-known headers and so many of the others, all spelled at will."""
    last = sum(_PARTS.values())
    chosen = [last - number * 67 for number in range(headers)]
    lines = ["#include <windows.h>", "#include <WINDOWS.H>", "#include <Winsock2.h>"]
    lines += [f"#include <{_spell(number, number + 2)}>" for number in chosen]
    lines += ["PAINT paint; SOCKADDR address;", "DWORD last(void) { return GetLastError(); }"]
    lines += [f"HEADER_{number} used_{number};" for number in chosen]
    return "\n".join(lines) + "\n"
