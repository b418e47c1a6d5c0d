"""What a long prompt costs others: first token of a short request, longest gap of an answer.

python examples/company.py [MODEL] [TOKENS of the long prompt]
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import offload

model = sys.argv[1] if len(sys.argv) > 1 else None
long_prompt = [300 + i % 700 for i in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1500)]


def run(engine: offload.Engine, prompt: str | list[int], max_tokens: int) -> offload.RunStats:
    """One answer; what it cost."""
    answer = engine.generate(prompt, max_tokens=max_tokens, temperature=0)
    list(answer)
    return answer.stats


print("chunk   short request alone   behind the long prompt   longest gap of a running answer")
for chunk in (64, 128, 256, 512, 4096):
    with offload.load(model, context=2048, chunk=chunk) as engine, ThreadPoolExecutor() as pool:
        alone = run(engine, "And God said", 1)
        running = pool.submit(run, engine, "In the beginning", 400)
        long = pool.submit(run, engine, long_prompt, 1)
        time.sleep(0.02)
        short = pool.submit(run, engine, "And it came to pass", 1).result()
        first, late = alone.time_to_first_token, short.time_to_first_token
        gap = running.result().longest_gap
        print(f"{chunk:5} {1e3 * first:18.1f} ms {1e3 * late:21.1f} ms {1e3 * gap:28.1f} ms")
