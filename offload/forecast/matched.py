"""Drawn routings of which an expert cache gets a wanted share of hits."""

from __future__ import annotations

import numpy as np

from offload.forecast.draws import draw_routings
from offload.forecast.timeline import Costs, simulate

Array = np.ndarray
TRIED_LAYERS = 8  # layers are alike, so a few show what all do
TRIED_TOKENS = 48
STEPS = 7  # of halving: repeat is found to 1 in 128


def matched_routings(
    hit_rate: float,
    costs: Costs,
    *,
    slots: int,
    tokens: int,
    layers: int,
    experts: int,
    top_k: int,
    policy: str = "layer-lru",
    copies: int = 2,
    most: float = 1.0,
) -> Array:
    """Routings as `draw_routings` gives them whose experts come again so often that so many hit.

    The nearest there is: never fewer hits than uniform routing has, nor more than copies allow.
    most: how often an expert comes again in the next token, at most.
    """
    n = min(layers, TRIED_LAYERS)
    low, high = 0.0, most
    for _ in range(STEPS):
        repeat = (low + high) / 2
        drawn = draw_routings(
            tokens=TRIED_TOKENS, layers=n, experts=experts, top_k=top_k, repeat=repeat
        )
        share = -(-slots * n // layers)
        if simulate(costs, drawn, slots=share, policy=policy, copies=copies).hit_rate < hit_rate:
            low = repeat
        else:
            high = repeat
    # one end is known to be on the right side; at the borders it is the border itself
    repeat = 0.0 if low == 0 else most if high == most else (low + high) / 2
    return draw_routings(tokens=tokens, layers=layers, experts=experts, top_k=top_k, repeat=repeat)
