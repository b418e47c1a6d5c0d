"""An agent swarm on one engine: an orchestrator shares work out, sub-agents do it together.

The orchestrator's plan is JSON by a schema. Each sub-agent is a sequence of its own; their tokens
are computed in the same steps, so four take much less than four times one's time.
"""

import json
import sys
import time

import offload

THEMES = {
    "attention": ["latent", "KV cache"],
    "experts": ["routed expert", "shared expert", "router"],
    "speed": ["prefill", "quantisation"],
}
SCHEMA = {
    "type": "object",
    "properties": {theme: {"enum": terms} for theme, terms in THEMES.items()},
    "required": list(THEMES),
    "additionalProperties": False,
}
PLAN = {"type": "json_schema", "json_schema": {"name": "plan", "schema": SCHEMA}}

path = sys.argv[1] if len(sys.argv) > 1 else None
with offload.load(path, kv_tokens=8192) as engine:
    task = [{"role": "user", "content": "Which terms should a newcomer know?"}]
    plan = engine.chat(task, thinking=False, response_format=PLAN, seed=1).message()
    terms = list(json.loads(plan.content).values())
    began = time.perf_counter()
    questions = [[{"role": "user", "content": f"What is a {term}?"}] for term in terms]
    found = sorted(engine.batch(questions, thinking=False, temperature=0), key=lambda d: d.index)
    seconds = time.perf_counter() - began
    for term, done in zip(terms, found, strict=True):
        print(f"{term}: {done.text}")
    n_tokens = sum(len(done.ids) for done in found)
    print(f"{len(found)} sub-agents, {n_tokens} tokens together in {seconds:.2f} s")
    merged = "\n".join(done.text for done in found)
    notes = [{"role": "user", "content": f"Here are notes:\n{merged}\nWhat is a latent?"}]
    print("merged:", engine.chat(notes, thinking=False, temperature=0).message().content)
