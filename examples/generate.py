"""Continue a text with the embedded model, or with the GGUF file given as the first argument."""

import sys

import offload

path = sys.argv[1] if len(sys.argv) > 1 else None
with offload.load(path) as engine:
    for token in engine.generate("In the beginning", max_tokens=40, temperature=0):
        print(token.text, end="", flush=True)
    print(f"\n{engine.stats.decode_tps:.1f} tokens/s")
