"""A guest root laid over the host: the tree, the mount and the command."""

__version__ = "0.1.0"
