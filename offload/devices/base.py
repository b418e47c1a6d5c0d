"""What a device must offer: `Ops`, the operations of a transformer layer, by name and shape.

The forward pass (`offload/models`) is written against this protocol and knows no device. T tokens,
H hidden, A heads, E experts, K chosen experts; arrays are float32 in C order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from offload.config import ModelConfig
from offload.kv_cache import KVCache
from offload.weights import Matrix

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The router's choice: expert_ids (T, K) int64, weights (T, K) float32."""

    expert_ids: Array
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatedMLP:
    """down(silu(gate . x) * (up . x)); `count` of the matrices > 1: that many experts."""

    gate: Matrix
    up: Matrix
    down: Matrix


class Linear(Protocol):
    """Matrices that share their input, prepared once."""

    def __call__(self, x: Array) -> tuple[Array, ...]:
        """X (T, n) -> one (T, rows) per matrix."""


class PerHead(Protocol):
    """One matrix per head."""

    def __call__(self, x: Array) -> Array:
        """X (T, A, n), may be strided -> (T, A, rows)."""


class FeedForward(Protocol):
    """A dense MLP, or routed experts with or without a shared one."""

    def __call__(self, x: Array, out: Array, routing: Routing | None = None) -> None:
        """Out (T, H) += the block's result for x (T, H)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One layer's weights, ready to run: latent attention, then a dense MLP or experts."""

    attn_norm: Array  # (H,)
    first: Linear  # H -> (q or q_a, [c | k_rope])
    q_a_norm: Array | None  # (q_lora,), None without q_lora
    q_b: Linear | None  # q_lora -> A * (nope + rope)
    kv_a_norm: Array  # (kv_lora,)
    k_b: PerHead  # nope -> kv_lora
    v_b: PerHead  # kv_lora -> v
    output: Linear  # A * v -> H
    ffn_norm: Array  # (H,)
    router: Linear | None  # H -> E, None in dense layers
    bias: Array  # (E,) or (0,)
    ffn: FeedForward


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """A whole model of one device, from token to logits. scale: of the attention's queries."""

    config: ModelConfig
    embedding: Matrix
    layers: Sequence[Layer]
    output_norm: Array  # (H,)
    head: Linear  # H -> V
    scale: float


class Decoder(Protocol):
    """One token through a Stack in one go; bit for bit what its operations give one by one."""

    def __call__(
        self, token: int, kv: KVCache, cos: Array, sin: Array, check: Callable[[], None]
    ) -> Array:
        """Append a token to the cache -> logits (1, V), a new array; cos, sin (1, d/2).

        `check` is called now and then, before the head at last, and may raise; the cache then still
        ends where it did.
        """


class Ops(Protocol):
    """Operations of one device. `bytes_read` counts the weights that went through the kernels."""

    bytes_read: int

    def compile_steps(self, context: int) -> list[Callable[[], object]]:
        """What is left to compile for the parts prepared so far, one call each.

        context: tokens that the cache will hold; prompts of many need kernels of their own.
        """

    def close(self) -> None:
        """Give threads and memory back; nothing prepared here can be used afterwards."""

    def linear(self, *matrices: Matrix) -> Linear:
        """Prepare matrices that share their input; products round x to int8 for quantised types."""

    def per_head(self, matrix: Matrix) -> PerHead:
        """Prepare one matrix per head; x is not rounded."""

    def feed_forward(self, routed: GatedMLP | None, shared: GatedMLP | None) -> FeedForward:
        """Prepare a dense MLP (routed None) or routed experts."""

    def decoder(self, stack: Stack) -> Decoder | None:
        """What decodes single tokens faster than operation by operation, if there is such."""

    def embed(self, table: Matrix, ids: Array) -> Array:
        """Rows ids (T,) int64 of the table -> (T, H)."""

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """X (T, n) -> normalised (T, n), a new array."""

    def rope(self, x: Array, cos: Array, sin: Array) -> None:
        """Rotate adjacent pairs of x (T, heads, d) in place; cos, sin (T, d/2)."""

    def attend(
        self,
        q: Array,
        k_b: PerHead,
        v_b: PerHead,
        kv: KVCache,
        layer: int,
        first: int,
        scale: float,
    ) -> Array:
        """Causal MLA attention of T tokens at positions first.. over the cache -> (T, A * v).

        q (T, A, nope + rope), rotated; the tokens' own rows are already in the cache.
        """

    def route(
        self,
        logits: Array,
        bias: Array,
        top_k: int,
        *,
        sigmoid: bool,
        groups: tuple[int, int],
        normalise: bool,
        scale: float,
    ) -> Routing:
        """Choose experts: logits (T, E), bias (E,) or (0,), groups = (number, used)."""
