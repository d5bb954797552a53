"""The doors: adapters between a binding and the tree."""

from sysroot_fs.fuse.serve import serve as serve
