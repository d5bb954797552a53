"""The door that speaks the kernel's protocol itself, without a binding."""
