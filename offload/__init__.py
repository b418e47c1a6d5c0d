"""The runtime of kimi-offload."""
