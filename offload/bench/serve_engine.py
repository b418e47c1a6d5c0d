"""The engine by itself for `serve_bench`: lines of JSON in, lines out.

python -m offload.bench.serve_engine MODEL PACE PARALLEL
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

from offload.engine import Engine
from offload.engine_load import load
from offload.forward import Model


def slow(pace: float) -> None:
    """Let every pass take so many seconds, from now on; as a large model's. 0: as it is."""
    if not pace:
        return
    real = Model.forward

    def forward(self: Model, *arguments: Any, **more: Any) -> Any:
        began = time.perf_counter()
        logits = real(self, *arguments, **more)
        time.sleep(max(0.0, began + pace - time.perf_counter()))
        return logits

    Model.forward = forward  # type: ignore[method-assign]


def answer(engine: Engine, texts: list[str], tokens: int) -> float:
    """Tokens per second, from the first token to the last; each one's first is not counted."""
    answers = [engine.generate(text, temperature=0, max_tokens=tokens) for text in texts]
    for one in answers:
        one.begin()
    first, last, count = 0.0, 0.0, 0
    left = deque(answers)
    while left:
        for one in list(left):
            got = one.ready()
            if got:
                last = time.monotonic()
                first = first or last
                count += 1
            elif got is not None:
                left.remove(one)
                one.close()
        if left:
            engine.step()
    return (count - len(texts)) / (last - first)


def main() -> int:
    """The command in the module's docstring."""
    model, pace, parallel = sys.argv[1:4]
    slow(float(pace))
    with load(model, kv_tokens=2048 * int(parallel)) as engine:
        sys.stdout.write("{}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            asked = json.loads(line)
            tps = answer(engine, asked["prompts"], asked["tokens"])
            sys.stdout.write(json.dumps({"tps": tps}) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
