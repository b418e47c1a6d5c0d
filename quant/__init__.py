"""GGML block formats and their kernels; imports numpy, numba and itself only."""
