"""Kernels in, machine code out, line by line: the process that cubin_cache.py starts.

A line in: base64 of the pickled arguments of `ptx`. A line out, as JSON: {"cubin": base64}, or
{"error": text}.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys

from quant.cuda.cubin import assemble
from quant.cuda.ptx import ptx


def main(architecture: int) -> None:
    """Until standard input ends."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what compilers print is no answer
        for line in sys.stdin.buffer:
            try:
                code, _ = assemble(ptx(*pickle.loads(base64.b64decode(line))), architecture)
                answer = {"cubin": base64.b64encode(code).decode("ascii")}
            except Exception as exc:  # whatever a compiler may say
                answer = {"error": f"{type(exc).__name__}: {exc}"}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
