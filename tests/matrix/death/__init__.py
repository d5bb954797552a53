"""The server, its clients and its volume are killed, and calls fail: what is left must be right."""

from tests.matrix.death.suite import SUITES as SUITES
