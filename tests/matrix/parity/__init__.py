"""Parity: random calls on the mount and on a plain directory, every difference told."""

from tests.matrix.parity.suite import Parity

__all__ = ["Parity"]
