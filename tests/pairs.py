"""Names that some volume takes for one."""

from __future__ import annotations

from typing import Final

PAIRS: Final = (
    ("Makefile", "makefile"),
    ("stra\u00dfe", "STRASSE"),
    ("\u00df", "\u1e9e"),
    ("\ufb01", "fi"),
    ("\u017f", "s"),
    ("\u0131", "I"),
    ("\u0130", "i"),
    ("\u00b5", "\u03bc"),
    ("\u212a", "k"),
    ("\u212b", "\u00e5"),
    ("\u2126", "\u03c9"),
    ("\u03c3", "\u03c2"),
    ("caf\u00e9", "CAF\u00c9"),
    ("caf\u00e9", "cafe\u0301"),
    ("caf\u00e9", "CAFE\u0301"),
    ("\u0390", "\u03aa\u0301"),
    ("\u1fb3", "\u1fbc"),
    ("\u1fb3", "\u03b1\u0345"),
    ("\u01c6", "\u01c5"),
    ("\u01c6", "\u01c4"),
    ("\u10d0", "\u1c90"),
    ("\U00010428", "\U00010400"),
    ("\u24d0", "\u24b6"),
    ("\uff41", "\uff21"),
    ("\ua641", "\ua640"),
    ("\u0250", "\u2c6f"),
    ("\u9f8d", "\uf9c4"),
    ("\uac00", "\u1100\u1161"),
    ("q\u0323\u0307", "q\u0307\u0323"),
    ("a ", "a"),
)
"""Pairs that fold together on zfs, zfs with normal forms, exFAT, NTFS or APFS."""
