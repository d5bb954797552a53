"""The doors: adapters between the kernel or a binding and the tree."""
