"""The command `sysroot-fs`: one module a verb."""

from sysroot_fs.cli.command import main

__all__ = ["main"]
