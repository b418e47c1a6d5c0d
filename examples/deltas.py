"""In a program of your own: reasoning, content and tool calls as they come, each by its channel."""

import sys

import offload

path = sys.argv[1] if len(sys.argv) > 1 else None
with offload.load(path) as engine:
    question = {"role": "user", "content": "What is a routed expert?"}
    answer = engine.chat([question], thinking_budget=64, temperature=0)
    channel = None
    for delta in answer:
        if delta.channel != channel:
            channel = delta.channel
            print(f"\n[{channel}] ", end="")
        if delta.call is not None and not delta.text:
            print(delta.call.name, end=" ")
        print(delta.text, end="", flush=True)
    print(f"\n{answer.stats.finish_reason}, {answer.stats.decode_tps:.0f} tokens/s")
