"""What a loader reads of an ELF file: for which machine it is, its loader, the libraries it needs.

Only the headers and the dynamic segment are read (half a millisecond a file), never the sections,
which a stripped file need not have. The file may be anybody's: whatever cannot be understood is
None, and sizes and counts are bounded.

pyelftools is imported here as a whole: it imports nothing later, so this works after a change of
root too.
"""

from __future__ import annotations

import io
import os
import stat
from typing import Any, Final

import attrs
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

HEADERS: Final = 1170
"""Program headers that are looked at: the kernel takes 64 KiB of them, 1170 of 64 bits."""
ENTRIES: Final = 1024
"""Entries of the dynamic segment that are looked at; libraries have about 30."""
STRINGS: Final = 65536
"""Bytes of strings that are kept of one file; names of libraries have 10 to 40 each."""
_NAME: Final = 4096  # PATH_MAX: no longer string can be opened

# As uname(2) says it, by word size and byte order where these make a difference.
_MACHINES: Final = {
    "EM_386": "i386",
    "EM_68K": "m68k",
    "EM_IA_64": "ia64",
    "EM_PARISC": "parisc",
    "EM_S390": "s390x",
    "EM_SPARCV9": "sparc64",
}


@attrs.frozen
class Image:
    """An ELF file as its loader sees it; strings are as they stand in the file."""

    machine: str
    """As uname(2) names machines: `x86_64`."""
    kind: str
    """`EXEC`, `DYN`, `REL`, `CORE`, or a number."""
    interpreter: bytes | None
    """The loader, PT_INTERP; None for a static program and for most libraries."""
    needed: tuple[bytes, ...]
    soname: bytes | None
    rpath: bytes | None
    runpath: bytes | None


def read(path: bytes) -> Image | None:
    """The ELF file at *path*; None for every other file, and for what cannot be understood.

    Raises OSError where the file cannot be opened.
    """
    # Never opened: a fifo, which would wait, or a device, which would do whatever it does.
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
        try:
            return _image(ELFFile(stream), stream)
        # A parser that was handed garbage may fail in any way, a seek to nowhere included.
        except Exception:
            return None


def _machine(name: str | int, wide: bool, little: bool) -> str:
    if not isinstance(name, str):
        return f"machine number {name}"
    if name == "EM_X86_64":
        return "x86_64" if wide else "x32"
    if name == "EM_AARCH64":
        return "aarch64" if little else "aarch64_be"
    if name == "EM_ARM":
        return "arm" if little else "armeb"
    if name in ("EM_PPC", "EM_PPC64"):
        return ("ppc64" if name == "EM_PPC64" else "ppc") + ("le" if little else "")
    if name == "EM_MIPS":
        return ("mips64" if wide else "mips") + ("el" if little else "")
    if name in ("EM_RISCV", "EM_LOONGARCH"):
        return name[3:].lower() + ("64" if wide else "32")
    return _MACHINES.get(name, name.removeprefix("EM_").lower())


def _image(elf: ELFFile, stream: io.BufferedReader) -> Image:
    header = elf.header
    word = 8 if elf.elfclass == 64 else 4
    kind = str(header["e_type"]).removeprefix("ET_")
    machine = _machine(header["e_machine"], word == 8, elf.little_endian)
    size = elf.structs.Elf_Phdr.sizeof()
    count = header["e_phnum"]
    if not count:
        return Image(machine, kind, None, (), None, None, None)
    if header["e_phentsize"] != size or count > HEADERS:
        raise ValueError("program headers that no kernel takes")
    stream.seek(header["e_phoff"])
    table = io.BytesIO(stream.read(size * count))
    interpreter, dynamic = None, None
    loads: list[Any] = []
    for number in range(count):
        segment = struct_parse(elf.structs.Elf_Phdr, table, number * size)
        if segment["p_type"] == "PT_LOAD":
            loads.append(segment)
        elif segment["p_type"] == "PT_DYNAMIC":
            dynamic = segment
        # The kernel reads the first one only.
        elif segment["p_type"] == "PT_INTERP" and interpreter is None:
            length = min(segment["p_filesz"], _NAME)
            stream.seek(segment["p_offset"])
            interpreter = stream.read(length).split(b"\0", 1)[0]
    tags: dict[str, list[int]] = {}
    if dynamic is not None:
        length = min(dynamic["p_filesz"], ENTRIES * 2 * word)
        stream.seek(dynamic["p_offset"])
        entries = io.BytesIO(stream.read(length))
        while entries.tell() + 2 * word <= length:
            entry = struct_parse(elf.structs.Elf_Dyn, entries)
            if entry["d_tag"] == "DT_NULL":
                break
            if entry["d_tag"] in _STRINGS:
                tags.setdefault(entry["d_tag"], []).append(entry["d_val"])

    strings: dict[str, list[bytes]] = {}
    if tags:
        base = _offset(tags.pop("DT_STRTAB")[-1], loads)
        room = STRINGS
        for tag, offsets in tags.items():
            strings[tag] = [_string(stream, base + offset) for offset in offsets]
            room -= sum(map(len, strings[tag]))
            if room < 0:
                raise ValueError("names too long to be meant")

    def last(tag: str) -> bytes | None:
        return strings[tag][-1] if tag in strings else None

    return Image(
        machine,
        kind,
        interpreter or None,
        tuple(strings.get("DT_NEEDED", ())),
        last("DT_SONAME"),
        last("DT_RPATH"),
        last("DT_RUNPATH"),
    )


_STRINGS: Final = frozenset(("DT_NEEDED", "DT_SONAME", "DT_RPATH", "DT_RUNPATH", "DT_STRTAB"))


def _offset(address: int, loads: list[Any]) -> int:
    """Where in the file lies what is loaded at *address*."""
    for segment in loads:
        start: int = segment["p_vaddr"]
        if start <= address < start + segment["p_filesz"]:
            offset: int = segment["p_offset"]
            return offset + address - start
    raise ValueError("an address that is not in the file")


def _string(stream: io.BufferedReader, offset: int) -> bytes:
    text = os.pread(stream.fileno(), _NAME, offset)
    name, end, _ = text.partition(b"\0")
    if not end:
        raise ValueError("a string without an end")
    return name
