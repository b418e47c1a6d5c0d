"""The proof of a real GPU: every kernel against the CPU, and how fast all of it is.

    python -m offload.gpu_check --out folder        # or: kimi-offload doctor --gpu

Each part runs in a process of its own under a time limit (runner.py); what it has found so far
counts, however it ends. Nothing is needed but numpy, numba and numba-cuda.
"""

from offload.gpu_check.runner import PARTS, SECONDS, check, chosen

__all__ = ["PARTS", "SECONDS", "check", "chosen"]
