"""Devices: one file per kind of memory and queue."""
