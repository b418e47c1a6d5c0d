"""CUDA kernels, compiled by numba-cuda; imported by nothing that runs without a GPU."""
