"""How kernels are compiled, kept, and for which processor."""
