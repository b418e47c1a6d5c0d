"""Packed layouts of routed experts."""
