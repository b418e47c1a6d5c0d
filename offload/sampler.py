"""From logits to the next token: a seeded sampler that applies its steps in the order asked for.

The default order: penalties, dry, min_p, temperature, top_k, top_p; each works on what the one
before left. So min_p looks at the model's own probabilities, whatever the temperature, and top_k
and top_p at tempered ones. A bias by token is added before them all.

A -inf in the model's logits is a token that must not come; NaN and +inf are errors.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from offload.dry import dry_penalties
from offload.errors import OffloadError
from offload.filters import (
    F32,
    IDS,
    LARGEST,
    apply_min_p,
    apply_penalties,
    apply_temperature,
    apply_top_k,
    apply_top_p,
)
from offload.guide import BITS, MASK, Allowed
from offload.sampling_params import SamplingParams

F64 = npt.NDArray[np.float64]
Recent = Sequence[int] | IDS
State = tuple[IDS | None, F32]  # the ids that may come (None: all), ascending, and their logits
MANY = 4096  # logits that are worth a look before they are sorted


def _penalties(params: SamplingParams, mask: MASK | None, state: State, recent: Recent) -> State:
    ids, logits = state
    window = np.asarray(recent[max(0, len(recent) - params.penalty_window) :], np.int64)
    places, _ = _places(ids, window)
    return ids, apply_penalties(
        logits,
        places,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
    )


def _dry(params: SamplingParams, mask: MASK | None, state: State, recent: Recent) -> State:
    ids, logits = state
    latest = np.asarray(recent[max(0, len(recent) - params.dry_window) :], np.int64)
    repeating, losses = dry_penalties(latest, mask, params)
    if not len(repeating):
        return state
    places, found = _places(ids, repeating)
    result = logits.copy()
    before = logits[places].astype(np.float64)
    lowered = np.maximum(before - losses[found], -LARGEST)
    result[places] = np.where(before == -np.inf, before, lowered)
    return ids, result


def _min_p(params: SamplingParams, mask: MASK | None, state: State, recent: Recent) -> State:
    assert params.min_p is not None
    return _without_removed(state[0], apply_min_p(state[1], params.min_p))


def _temperature(params: SamplingParams, mask: MASK | None, state: State, recent: Recent) -> State:
    assert params.temperature is not None
    ids, logits = state
    if params.temperature == 0:
        best = np.argmax(logits, keepdims=True)
        return best if ids is None else ids[best], logits[best]
    return ids, apply_temperature(logits, params.temperature)


def _top_k(params: SamplingParams, mask: MASK | None, state: State, recent: Recent) -> State:
    return _without_removed(state[0], apply_top_k(state[1], params.top_k))


def _top_p(params: SamplingParams, mask: MASK | None, state: State, recent: Recent) -> State:
    assert params.top_p is not None
    ids, logits = state
    total = None
    if len(logits) >= MANY and params.top_p < 1:
        # Tokens of probability (1-top_p)/V or less weigh at most 1-top_p together, so top_p needs
        # none of them: far fewer are left to sort, and the same ones are kept.
        total = float(np.exp(logits - logits.max()).sum(dtype=np.float64))
        lowest = (1 - params.top_p) * total / len(logits)
        ids, logits = _without_removed(ids, apply_min_p(logits, min(1.0, lowest)))
    return _without_removed(ids, apply_top_p(logits, params.top_p, total))


Step = Callable[[SamplingParams, MASK | None, State, Recent], State]
STEPS: Mapping[str, Step] = MappingProxyType(
    {
        "penalties": _penalties,
        "dry": _dry,
        "min_p": _min_p,
        "temperature": _temperature,
        "top_k": _top_k,
        "top_p": _top_p,
    }
)


def _only(logits: F32, allowed: BITS | Sequence[int]) -> State:
    """Without those that may not come. OffloadError if none is left."""
    if not isinstance(allowed, np.ndarray):
        ids = np.unique(np.asarray(allowed, np.int64))
        state = _without_removed(ids, logits[ids])
    elif len(words := np.flatnonzero(allowed)) > MANY // 32:
        kept = np.unpackbits(allowed.view(np.uint8), count=len(logits), bitorder="little")
        # the lesser of the logit and inf, or -inf: a third of the time of np.where
        masked = np.subtract(kept, np.float32(0.5), dtype=np.float32)
        masked *= np.float32(np.inf)
        np.minimum(masked, logits, out=masked)
        state = (None, masked if masked.max() > -np.inf else masked[:0])
    else:
        bits = np.unpackbits(allowed[words].view(np.uint8), bitorder="little")
        places = np.flatnonzero(bits)
        ids = words[places >> 5] * 32 + (places & 31)
        state = _without_removed(ids, logits[ids])
    if not len(state[1]):
        raise OffloadError("no token may come next: the model rules out all that were allowed")
    return state


def _with_bias(state: State, biased: IDS, bias: F32) -> State:
    ids, logits = state
    places, found = _places(ids, biased)
    result = logits.copy()
    result[places] += bias[found]
    return ids, result


def _without_removed(ids: IDS | None, logits: F32) -> State:
    kept = np.flatnonzero(logits > -np.inf)
    return kept if ids is None else ids[kept], logits[kept]


def _places(ids: IDS | None, wanted: IDS) -> tuple[IDS, IDS]:
    """(where in `ids` they are, which of `wanted` these are): removed ids are in neither."""
    if ids is None:
        return wanted, np.arange(len(wanted))
    places = np.searchsorted(ids, wanted)
    places[places == len(ids)] = 0
    found = np.flatnonzero(ids[places] == wanted)
    return places[found], found


def _active(params: SamplingParams) -> tuple[str, ...]:
    """The steps that can change anything, in order."""
    p = params
    penalised = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
    acts = {
        "penalties": penalised and p.penalty_window > 0,
        "dry": p.dry_multiplier > 0 and p.dry_window > 0,
        "min_p": p.min_p != 0,
        "temperature": p.temperature != 1,
        "top_k": p.top_k > 0,
        "top_p": p.top_p != 1,
    }
    names = tuple(name for name in p.samplers if acts[name])
    if p.temperature == 0 and "temperature" in names:
        # only the likeliest is left, and no filter before it would have taken that one
        before = names[: names.index("temperature")]
        names = (*(name for name in before if name in ("penalties", "dry")), "temperature")
    return names


class Sampler:
    """Draws tokens by one set of parameters and its own random stream. Not thread-safe."""

    def __init__(self, params: SamplingParams, breakers: MASK | None = None) -> None:
        """params: parameters still None count as 1 (temperature, top_p) and 0 (min_p).

        breakers: (V,) true for tokens that no repeat reaches across (`offload.dry.breaker_mask`).
        """
        neutral = SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0)
        self.params = params.with_defaults(neutral)
        self._breakers = breakers
        self._steps = _active(self.params)
        biases = self.params.logit_bias
        self._biased = np.array([token_id for token_id, _ in biases], np.int64)
        self._bias = np.array([bias for _, bias in biases], np.float32)
        self._is_greedy = self._steps[-1:] == ("temperature",) and self.params.temperature == 0
        self._seed = secrets.randbits(63) if params.seed is None else params.seed
        self._rng = np.random.Generator(np.random.PCG64(self._seed))

    @property
    def seed(self) -> int:
        """The seed in use; the same seed, parameters and logits give the same ids."""
        return self._seed

    def seek(self, n_tokens: int) -> None:
        """Go to where the random stream is after `n_tokens` tokens."""
        bits = np.random.PCG64(self._seed)
        bits.advance(n_tokens)
        self._rng = np.random.Generator(bits)

    def _candidates(self, logits: F32, recent: Recent, allowed: Allowed) -> State:
        """The ids that may come (None: all), ascending, and their logits."""
        if logits.ndim != 1 or len(logits) == 0:
            raise ValueError(f"logits must have the shape (V,), not {logits.shape}")
        _check_finite(logits)
        state: State = (None, logits) if allowed is None else _only(logits, allowed)
        if len(self._bias):
            state = _with_bias(state, self._biased, self._bias)
        for name in self._steps:
            state = STEPS[name](self.params, self._breakers, state, recent)
        return state

    def _weights(self, logits: F32, recent: Recent, allowed: Allowed) -> tuple[IDS | None, F32]:
        """The ids that may come, and exp(logit - largest logit) of each."""
        ids, logits = self._candidates(logits, recent, allowed)
        if len(logits) == 1:
            return ids, np.ones(1, np.float32)
        top = logits.max()
        with np.errstate(over="ignore"):  # -inf - top, and logits near the end of the range
            return ids, np.exp(logits - top if top else logits)

    def distribution(
        self, logits: F32, recent: Recent = (), allowed: Allowed = None
    ) -> tuple[IDS, F64]:
        """The ids that may come, ascending, and their probabilities (float64, sum 1).

        logits: (V,) float32. recent: the ids so far, oldest first; only penalties and dry read it.
        allowed: what a guide lets come.
        """
        ids, weights = self._weights(logits, recent, allowed)
        probabilities = weights.astype(np.float64)
        probabilities /= probabilities.sum()
        return np.arange(len(weights)) if ids is None else ids, probabilities

    def sample(self, logits: F32, recent: Recent = (), allowed: Allowed = None) -> int:
        """The next token; arguments as for `distribution`. Greedy draws no random number."""
        ids, weights = self._weights(logits, recent, allowed)
        if len(weights) == 1:
            place = 0
            if not self._is_greedy:
                self._rng.random()  # one draw per token, so that streams stay comparable
        else:
            place = _place(weights, self._rng.random())
        return place if ids is None else int(ids[place])


_BLOCK = 512


def _place(weights: F32, u: float) -> int:
    """The first place at which the running sum of `weights` exceeds u (in [0, 1)) of the whole.

    In two steps, block sums first: a running sum over a whole vocabulary takes a millisecond.
    """
    starts = np.arange(0, len(weights), _BLOCK)
    reached = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    drawn = u * reached[-1]
    block = int(np.searchsorted(reached, drawn, side="right"))
    before = reached[block - 1] if block else 0.0
    members = weights[block * _BLOCK : (block + 1) * _BLOCK]
    inside = np.cumsum(members, dtype=np.float64)
    place = int(np.searchsorted(inside, drawn - before, side="right"))
    if place == len(members):  # rounding: the block sum was added up in another order
        place = int(np.flatnonzero(members)[-1])
    return block * _BLOCK + place


def make_sampler(params: SamplingParams, breakers: MASK | None = None) -> Sampler:
    """A sampler with a fresh random stream; see `Sampler`."""
    return Sampler(params, breakers)


def _check_finite(logits: F32) -> None:
    top = float(logits.max())  # NaN if any logit is NaN
    if math.isfinite(top):
        return
    faults = int(np.isnan(logits).sum()) or int(np.isinf(logits).sum())
    kind = "NaN" if math.isnan(top) else "infinite"
    raise OffloadError(
        f"{faults} of {len(logits)} logits are {kind}, so no token can be chosen; the model file "
        "is damaged or the arithmetic failed: check the file, then report it."
    )
