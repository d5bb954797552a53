"""What `sysroot-fs check` finds in a directory of a volume and below."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sidecar.check import Subject, inspect
from sidecar.findings import Finding, Severity
from sidecar.listings import Directory, read_directory
from sidecar.volume import Traits

__all__ = ["findings", "pages"]


def pages(top: Path, traits: Traits) -> Iterator[tuple[Directory, list[Finding]]]:
    """Every directory from *top* on with what was found in it, as `inspect` gives them."""
    plain = traits.transparent
    subject = Subject(kinds=(), serves=not plain and traits.name_unit == "bytes", plain=plain)
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield from inspect(read_directory(fd), subject)
    finally:
        os.close(fd)


def findings(top: Path, traits: Traits) -> list[Finding]:
    """All that is no mere note."""
    return [
        finding
        for _, page in pages(top, traits)
        for finding in page
        if finding.severity is not Severity.NOTE
    ]
