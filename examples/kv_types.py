"""What the number type of the attention cache costs: perplexity of a text by kv_type.

python kv_types.py [TEXT.txt [MODEL.gguf]]; otherwise kimi-mini reads a psalm that it never saw.
"""

import sys
from pathlib import Path

import numpy as np

import offload

PSALM = """Psalm 23

The LORD is my shepherd; I shall not want.
He maketh me to lie down in green pastures: he leadeth me beside the still waters.
He restoreth my soul: he leadeth me in the paths of righteousness for his name's sake.
Yea, though I walk through the valley of the shadow of death, I will fear no evil: for thou art \
with me; thy rod and thy staff they comfort me.
Thou preparest a table before me in the presence of mine enemies: thou anointest my head with oil; \
my cup runneth over.
Surely goodness and mercy shall follow me all the days of my life: and I will dwell in the house \
of the LORD for ever."""

text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else PSALM
with offload.load(sys.argv[2] if len(sys.argv) > 2 else None) as engine:
    ids = engine.tokenizer.encode(text)
    windows = [ids[i : i + 1025] for i in range(0, len(ids) - 1, 1024)]
    print(f"{engine.config.name}: {len(ids)} tokens")
    for kv_type in ("f32", "f16", "q8_0"):
        nats = same = 0
        for window in windows:
            logits = engine.logits(window[:-1], kv_type=kv_type).astype(np.float64)
            logits -= logits.max(1, keepdims=True)
            of_next = logits[range(len(logits)), window[1:]]
            nats += (np.log(np.exp(logits).sum(1)) - of_next).sum()
            same += (of_next == 0).sum()
        perplexity, right = np.exp(nats / (len(ids) - 1)), same / (len(ids) - 1)
        print(f"  {kv_type:<5} perplexity {perplexity:7.3f}, {right:.1%} of tokens foreseen")
