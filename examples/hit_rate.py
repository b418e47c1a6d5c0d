"""How often would a hot-expert cache hit? Routings of real answers, replayed with every policy."""

import sys

import offload


def record(engine: offload.Engine, question: str) -> offload.RoutingTrace:
    """The experts that one answer used."""
    trace = offload.RoutingTrace()
    engine.trace_routing(trace)
    for _ in engine.chat([{"role": "user", "content": question}], seed=1, max_tokens=150):
        pass
    engine.trace_routing(None)
    return trace


with offload.load(sys.argv[1] if len(sys.argv) > 1 else None) as engine:
    profile = record(engine, "What is a latent?").profile()  # what `pinned` pins: another answer
    trace = record(engine, "What is a routed expert?")
    config = engine.config

layers = config.num_layers - config.first_k_dense
experts = layers * config.n_routed_experts
print(f"{config.name}: {experts} experts, a token uses {trace.token_cycle}; slots across,")
print("hits and loads (copies to the device) as a share of the experts asked for\n")
print(offload.hit_rates(trace, [experts * i // 16 for i in (1, 2, 4, 6, 8, 12)], profile=profile))
