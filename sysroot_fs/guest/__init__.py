"""Entering a guest root: namespaces, mounts, the terminal, signals, exit statuses."""
