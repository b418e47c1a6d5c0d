"""One file per GGML type: how its weights lie in VRAM."""
