"""From logits to the next token: parameters, pure filters, and a seeded sampler.

Order, as in HF transformers: repetition, presence and frequency penalty, then temperature, then
top_k, top_p and min_p on what is left. (llama.cpp applies the temperature last.)

Every `apply_*` takes logits (V,) float32 and returns logits (V,) float32 in which a removed token
is -inf; the argument is never written to. A -inf in the model's logits is a token that must not
come; NaN and +inf are errors.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from offload.errors import OffloadError, RequestError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
IDS = npt.NDArray[np.int64]

# field: lowest, highest value, whether the lowest itself is allowed
_INTERVALS: Mapping[str, tuple[float, float, bool]] = MappingProxyType(
    {
        "temperature": (0.0, 10.0, True),
        "top_p": (0.0, 1.0, False),
        "min_p": (0.0, 1.0, True),
        "repetition_penalty": (0.0, 10.0, False),
        "presence_penalty": (-2.0, 2.0, True),
        "frequency_penalty": (-2.0, 2.0, True),
    }
)
_COUNTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "top_k": (0, 2**31 - 1),
        "penalty_window": (0, 2**31 - 1),
        "max_tokens": (1, 2**31 - 1),
        "seed": (0, 2**64 - 1),
    }
)
_OPTIONAL = frozenset({"temperature", "top_p", "min_p", "max_tokens", "seed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. None means the default of the model and its mode.

    temperature: 0 is greedy (the most likely token, the lowest id on ties).
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the fewest tokens, most likely first, whose probabilities reach top_p.
    min_p: keep tokens at least min_p times as likely as the most likely one.
    repetition_penalty: divides positive and multiplies negative logits of recent tokens.
    presence_penalty, frequency_penalty: subtracted once per recent token, and per occurrence.
    penalty_window: how many of the latest ids count as recent; 0 switches the penalties off.
    max_tokens: the most tokens to generate; None is as many as the context holds.
    stop: strings that end the answer; they are not part of it. One string is taken as such.
    seed: None draws a fresh one, which `Sampler.seed` tells.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 1024
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high, closed) in _INTERVALS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            fits = _is_number(value) and low <= value <= high and (closed or value > low)
            if not fits:  # NaN fails every comparison
                interval = f"{'[' if closed else '('}{low:g}, {high:g}]"
                raise RequestError(f"{name} must be a number in {interval}, not {value!r}.")
            object.__setattr__(self, name, float(value))
        for name, (lowest, highest) in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            whole = _is_number(value) and math.isfinite(value) and int(value) == value
            if not whole or not lowest <= value <= highest:
                raise RequestError(
                    f"{name} must be a whole number in [{lowest}, {highest}], not {value!r}."
                )
            object.__setattr__(self, name, int(value))
        stop: Any = self.stop
        stop = () if stop is None else (stop,) if isinstance(stop, str) else stop
        if not isinstance(stop, (list, tuple)) or not all(isinstance(s, str) and s for s in stop):
            raise RequestError(f"stop must be strings that are not empty, not {self.stop!r}.")
        object.__setattr__(self, "stop", tuple(stop))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Parameters by name; an unknown name is a RequestError that lists the known ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise RequestError(
                f"unknown sampling parameter {unknown[0]!r}; known are {', '.join(known)}."
            )
        return cls(**options)

    def with_defaults(self, defaults: SamplingParams) -> SamplingParams:
        """The same with every None taken from `defaults`."""
        missing = {
            name: getattr(defaults, name) for name in _OPTIONAL if getattr(self, name) is None
        }
        return replace(self, **missing)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


# What the makers recommend, (temperature, top_p) by (format, thinking). They name no min_p; 0.01
# trims the tail of unlikely tokens that low-bit quantisation raises.
_DEFAULTS: Mapping[tuple[str, bool], tuple[float, float]] = MappingProxyType(
    {
        ("kimi-k2.5", True): (1.0, 0.95),
        ("kimi-k2.5", False): (0.6, 0.95),
        ("kimi-k2.7-code", True): (1.0, 0.95),
        ("kimi-k2.7-code", False): (0.6, 0.95),
        ("kimi-k2-thinking", True): (1.0, 1.0),
        ("kimi-k2", False): (0.6, 1.0),
        ("kimi-k2-first", False): (0.6, 1.0),
    }
)
_GENERIC = (0.7, 0.95)
_MIN_P = 0.01


def defaults_for(format_name: str, thinking: bool) -> SamplingParams:
    """What None means for a chat format (`ChatFormat.name`) in its mode.

    Models without a published recommendation get temperature 0.7 and top_p 0.95. max_tokens and
    seed stay None.
    """
    temperature, top_p = _DEFAULTS.get((format_name, thinking), _GENERIC)
    return SamplingParams(temperature=temperature, top_p=top_p, min_p=_MIN_P)


def apply_penalties(
    logits: F32, recent: Sequence[int] | IDS, repetition: float, presence: float, frequency: float
) -> F32:
    """Lower the logits of recent tokens; see `SamplingParams` for the three rules."""
    ids, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    result = logits.copy()
    if len(ids) == 0:
        return result
    if ids[0] < 0 or ids[-1] >= len(logits):
        raise ValueError(f"recent ids must be in 0..{len(logits) - 1}")
    values = result[ids]
    values = np.where(values > 0, values / np.float32(repetition), values * np.float32(repetition))
    result[ids] = values - (presence + frequency * counts).astype(np.float32)
    return result


def apply_temperature(logits: F32, temperature: float) -> F32:
    """Logits over the temperature, shifted so that the largest is 0 (no overflow near 0)."""
    shifted: F32 = logits - logits.max()
    with np.errstate(over="ignore"):  # -inf is what a logit below the range means
        shifted /= np.float32(max(temperature, 1e-30))
    return shifted


def apply_top_k(logits: F32, k: int) -> F32:
    """Keep the k largest; of equal logits at the border, those with the lowest ids."""
    if k == 0 or k >= len(logits):
        return logits
    border = np.partition(logits, len(logits) - k)[len(logits) - k]
    return _keep(logits, logits, border, k)


def apply_top_p(logits: F32, p: float, total: float | None = None) -> F32:
    """Keep the fewest tokens, largest first, whose probabilities sum to at least p; never none.

    total: the sum of exp(logits - max) that probabilities refer to, where `logits` is what a
    later filter left of it; so both orders of the two filters give the same tokens.
    """
    if p >= 1.0:
        return logits
    weights = np.exp(logits - logits.max())
    if total is None:
        total = float(weights.sum(dtype=np.float64))
    # Positive floats order like their bits. The upper 16 bits make at most 16,257 classes; only
    # the class in which the sum passes p is sorted.
    classes = weights.view(np.int32) >> 16
    reached = np.cumsum(np.bincount(classes, weights=weights)[::-1])
    passing = int(np.searchsorted(reached, p * total))
    if passing == len(reached):  # all together do not reach p: a later filter took the rest
        return logits
    border_class = len(reached) - 1 - passing
    before = reached[passing - 1] if passing else 0.0
    members = np.sort(weights[classes == border_class])[::-1]
    inside = int(np.searchsorted(before + np.cumsum(members, dtype=np.float64), p * total))
    inside = min(inside, len(members) - 1)
    count = int(np.count_nonzero(classes > border_class)) + inside + 1
    return _keep(logits, weights, members[inside], count)


def apply_min_p(logits: F32, p: float) -> F32:
    """Keep tokens at least p times as likely as the most likely one."""
    if p == 0.0:
        return logits
    lowest = logits.max() + np.float32(math.log(p))
    return np.where(logits >= lowest, logits, np.float32(-np.inf))


def _keep(logits: F32, by: F32, border: np.float32, count: int) -> F32:
    """The `count` tokens whose `by` is largest; `border` is the smallest `by` among them."""
    above = np.flatnonzero(by > border)
    equal = np.flatnonzero(by == border)[: count - len(above)]
    result = np.full_like(logits, -np.inf)
    result[above] = logits[above]
    result[equal] = logits[equal]
    return result


class Sampler:
    """Draws tokens by one set of parameters and its own random stream. Not thread-safe."""

    def __init__(self, params: SamplingParams) -> None:
        """params: parameters still None count as 1 (temperature, top_p) and 0 (min_p)."""
        neutral = SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0)
        self.params = params.with_defaults(neutral)
        self._seed = secrets.randbits(63) if params.seed is None else params.seed
        self._rng = np.random.Generator(np.random.PCG64(self._seed))

    @property
    def seed(self) -> int:
        """The seed in use; the same seed, parameters and logits give the same ids."""
        return self._seed

    def _penalised(self, logits: F32, recent: Sequence[int]) -> F32:
        if logits.ndim != 1 or len(logits) == 0:
            raise ValueError(f"logits must have the shape (V,), not {logits.shape}")
        _check_finite(logits)
        p = self.params
        neutral = p.repetition_penalty == 1 and p.presence_penalty == p.frequency_penalty == 0
        window = min(p.penalty_window, len(recent))
        if neutral or window == 0:
            return logits
        return apply_penalties(
            logits,
            recent[len(recent) - window :],
            p.repetition_penalty,
            p.presence_penalty,
            p.frequency_penalty,
        )

    def _weights(self, logits: F32, recent: Sequence[int]) -> tuple[IDS | None, F32]:
        """The ids that may come (None: all), ascending, and exp(logit - largest logit) of each."""
        logits = self._penalised(logits, recent)
        p = self.params
        if p.temperature == 0:
            return np.array([np.argmax(logits)]), np.ones(1, dtype=np.float32)
        assert p.temperature is not None
        assert p.top_p is not None
        assert p.min_p is not None
        logits = apply_temperature(logits, p.temperature)
        if p.top_k == 0 and p.top_p == 1 and p.min_p == 0:
            return None, np.exp(logits)
        logits = apply_top_k(logits, p.top_k)
        # min_p goes before top_p, which then counts against the sum before min_p: the same tokens
        # as in the other order, far fewer to sort. Tokens of probability (1-top_p)/V or less weigh
        # at most 1-top_p together, so top_p needs none of them: min_p takes them along.
        total, lowest = 1.0, p.min_p
        if p.top_p < 1:
            total = float(np.exp(logits).sum(dtype=np.float64))
            lowest = max(lowest, (1 - p.top_p) * total / len(logits))
        logits = apply_min_p(logits, lowest)
        ids = np.flatnonzero(logits > -np.inf)
        kept = apply_top_p(logits[ids], p.top_p, total)
        final = np.flatnonzero(kept > -np.inf)
        return ids[final], np.exp(kept[final])

    def distribution(self, logits: F32, recent: Sequence[int] = ()) -> tuple[IDS, F64]:
        """The ids that may come, ascending, and their probabilities (float64, sum 1).

        logits: (V,) float32. recent: the ids so far, oldest first; only the penalties read it.
        """
        ids, weights = self._weights(logits, recent)
        probabilities = weights.astype(np.float64)
        probabilities /= probabilities.sum()
        return np.arange(len(weights)) if ids is None else ids, probabilities

    def sample(self, logits: F32, recent: Sequence[int] = ()) -> int:
        """The next token; arguments as for `distribution`. Greedy draws no random number."""
        ids, weights = self._weights(logits, recent)
        if len(weights) == 1:
            place = 0
            if self.params.temperature != 0:
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


def make_sampler(params: SamplingParams) -> Sampler:
    """A sampler with a fresh random stream."""
    return Sampler(params)


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
