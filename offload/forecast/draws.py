"""Routings for the simulator: drawn ones, and those of a recorded trace, pass by pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from offload.arguments import quoted
from offload.errors import RequestError
from offload.routing_trace import RoutingTrace

Array = np.ndarray


def draw_routings(
    *, tokens: int, layers: int, experts: int, top_k: int, repeat: float = 0.0, seed: int = 0
) -> Array:
    """A routing (tokens, layers, top_k) int64 of distinct experts, the heaviest first.

    repeat: how likely an expert of a token is chosen again by the next one in the same layer; all
    others are equally likely. 0: uniform, where nothing helps but the number of slots.
    """
    if not 0 < top_k <= experts or not 0 <= repeat <= 1:
        raise RequestError(
            f"{top_k} of {experts} experts with repeat {quoted(repeat)} cannot be drawn; "
            "give top_k in 1 .. experts, and repeat in 0 .. 1"
        )
    rng = np.random.default_rng(seed)
    drawn = np.empty((tokens, layers, top_k), np.int64)
    for token in range(tokens):
        rank = rng.random((layers, experts))
        if token:
            before = drawn[token - 1]
            again = 1 + rng.random(before.shape)  # above every other
            kept = np.where(rng.random(before.shape) < repeat, again, -1.0)
            np.put_along_axis(rank, before, kept, axis=1)
        chosen = np.argpartition(-rank, top_k - 1, axis=1)[:, :top_k]
        order = np.argsort(-np.take_along_axis(rank, chosen, axis=1), axis=1)
        drawn[token] = np.take_along_axis(chosen, order, axis=1)
    return drawn


def passes(routings: RoutingTrace | Array) -> Iterator[list[tuple[int, Array]]]:
    """The layers of one forward pass after the other: (layer, expert_ids (1, n) int64).

    What a trace has of a prompt is a pass of its distinct experts.
    """
    if isinstance(routings, RoutingTrace):
        yield from _traced(routings)
        return
    if not isinstance(routings, np.ndarray) or routings.ndim != 3 or not routings.size:
        raise RequestError(
            f"routings are a RoutingTrace or an array (tokens, layers, top_k) with something in "
            f"it, not {quoted(routings)}"
        )
    for token in routings.astype(np.int64):
        yield [(layer, ids[None]) for layer, ids in enumerate(token)]


def _traced(trace: RoutingTrace) -> Iterator[list[tuple[int, Array]]]:
    layers: list[tuple[int, Array]] = []
    for request in trace.requests:
        layer = request[0].layer
        if layers and layer <= layers[-1][0]:
            yield layers
            layers = []
        layers.append((layer, np.array([[key.expert for key in request]], np.int64)))
    if layers:
        yield layers
