"""What the guest sees and where its changes go."""

from sysroot_fs.tree.core import Entry as Entry
from sysroot_fs.tree.core import Tree as Tree
from sysroot_fs.tree.core import TreeConfig as TreeConfig
