"""The GGML types: one type, one file."""
