"""`python -m sysroot_fs` is the command `sysroot-fs`."""

import sys

from sysroot_fs.cli import main

if __name__ == "__main__":
    sys.exit(main())
