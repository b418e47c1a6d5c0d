"""Two questions in one conversation, thinking shown apart from the answer."""

import sys

import offload

path = sys.argv[1] if len(sys.argv) > 1 else None
messages: list[dict[str, str]] = []
with offload.load(path) as engine:
    for question in ("What is a routed expert?", "What is a latent?"):
        messages.append({"role": "user", "content": question})
        pieces: dict[str, str] = {"reasoning": "", "content": ""}
        for token in engine.chat(messages, temperature=0, max_tokens=200):
            pieces[token.channel] += token.text
        messages.append({"role": "assistant", "content": pieces["content"]})
        print(f"Q: {question}")
        print(f"   thought: {pieces['reasoning'].strip()}")
        print(f"A: {pieces['content'].strip()}\n")
