"""The command `sysroot-fs`: one module a verb."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; `argv` is without the program's name. The value is the exit status."""
    try:
        # Imported here: ^C while the modules are read is no traceback either.
        from sysroot_fs.cli.command import main as run_command
    except KeyboardInterrupt:
        return 130
    return run_command(argv)


__all__ = ["main"]
