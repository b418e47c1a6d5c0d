"""Architectures: one file per GGUF `general.architecture`."""
