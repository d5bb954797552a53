"""Real compilers through a folding mount of a Windows-SDK-like tree of 30 000 headers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.matrix import sdk
from tests.mounts import Mount, Mounter

COMPILERS: Final = {
    # It sees that both spellings are one file and would advise to write one of them only.
    "clang": [
        "clang", "--target=x86_64-pc-windows-msvc", "-Wall", "-Werror",
        "-Wno-nonportable-include-path",
    ],
    "gcc": ["gcc", "-Wall", "-Werror"],
}  # fmt: skip


@pytest.fixture(scope="module")
def mounter() -> Iterator[Mounter]:
    """Makes mounts of one sysroot that holds the SDK; no host."""
    # The tree in memory: to make it on a disk can take longer than everything else.
    with tempfile.TemporaryDirectory(prefix="sysroot-fs-test-", dir="/dev/shm") as name:
        work = Path(name)
        sdk.make(work / "sysroot-0/WinSDK")
        mounter = Mounter(work)
        try:
            yield mounter
        finally:
            mounter.close()


@pytest.fixture(scope="module")
def folding(mounter: Mounter) -> Mount:
    """The tree with lookups that fold in the SDK only."""
    return mounter("fold=/WinSDK", "fallback=none", sysroot=mounter.work / "sysroot-0")


def compile_in(mount: Mount, *command: str) -> subprocess.CompletedProcess[str]:
    """Check the syntax of the program, with the SDK below *mount*."""
    top = mount.point / "WinSDK"
    paths = [f"-I{top}/{directory}" for directory in sdk.INCLUDE_DIRECTORIES]
    return subprocess.run(
        [*command, "-fsyntax-only", "-nostdinc", *paths, "-x", "c", "-"],
        input=sdk.program(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_tree_has_as_many_headers_as_it_says(folding: Mount) -> None:
    """30 000 of them, of mixed spellings, by names that are all different when folded."""
    names = [name for _, _, files in os.walk(folding.sysroot) for name in files]
    assert len(names) == len({name.lower() for name in names}) == sdk.COUNT
    assert any(name.isupper() for name in names) and any(name.islower() for name in names)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiler_finds_headers_in_other_spellings(folding: Mount, compiler: str) -> None:
    """Directories and headers, and `#pragma once` knows a header under all of its spellings."""
    done = compile_in(folding, *COMPILERS[compiler])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
def test_without_fold_it_does_not(mounter: Mounter, folding: Mount, compiler: str) -> None:
    """The same program, the same tree, exact names."""
    exact = mounter("fallback=none", sysroot=folding.sysroot)
    done = compile_in(exact, *COMPILERS[compiler])
    assert done.returncode != 0
    assert "windows.h" in done.stderr.lower()


def test_a_header_that_is_generated_is_found_in_every_spelling_at_once(folding: Mount) -> None:
    """Also by spellings that a build has just asked for in vain."""
    missing = folding.point / "WinSDK/Include" / sdk.VERSION / "um/missing.h"
    for spelling in ("missing.h", "MISSING.h"):
        assert not missing.with_name(spelling).exists()
    missing.with_name("Missing.H").write_text("#pragma once\n")
    for spelling in ("missing.h", "MISSING.h", "Missing.H"):
        assert missing.with_name(spelling).exists()
    missing.unlink()
    assert not missing.with_name("MISSING.h").exists()
