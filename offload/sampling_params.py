"""SamplingParams: how to choose tokens and when to stop, checked once, here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from offload.arguments import check_type, is_number, quoted, whole
from offload.errors import RequestError

SAMPLERS = ("penalties", "dry", "min_p", "temperature", "top_k", "top_p")
BREAKERS = ("\n", ":", '"', "*")
ALL = 2**31 - 1  # a window that no context exceeds

# field: lowest, highest value, whether the lowest itself is allowed
INTERVALS: Mapping[str, tuple[float, float, bool]] = MappingProxyType(
    {
        "temperature": (0.0, 10.0, True),
        "top_p": (0.0, 1.0, False),
        "min_p": (0.0, 1.0, True),
        "repetition_penalty": (0.0, 10.0, False),
        "presence_penalty": (-2.0, 2.0, True),
        "frequency_penalty": (-2.0, 2.0, True),
        "dry_multiplier": (0.0, 100.0, True),
        "dry_base": (1.0, 10.0, True),
    }
)
COUNTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "top_k": (0, ALL),
        "penalty_window": (0, ALL),
        "dry_allowed_length": (1, ALL),
        "dry_window": (0, ALL),
        "max_tokens": (1, ALL),
        "seed": (0, 2**64 - 1),
    }
)
# what -1 stands for, as in other programs
_MINUS_ONE: Mapping[str, int | None] = MappingProxyType(
    {"top_k": 0, "penalty_window": ALL, "dry_window": ALL, "max_tokens": None, "seed": None}
)
MOST_BIAS = 100.0
_OPTIONAL = frozenset({"temperature", "top_p", "min_p", "max_tokens", "seed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. None means the default of every field.

    The default of temperature, top_p and min_p is the model's and its mode's (`defaults_for`).

    temperature: 0 is greedy (the most likely token, the lowest id on ties).
    top_k: keep the k most likely tokens; 0 or -1 keeps all.
    top_p: keep the fewest tokens, most likely first, whose probabilities reach top_p.
    min_p: keep tokens at least min_p times as likely as the most likely one.
    repetition_penalty: divides positive and multiplies negative logits of recent tokens.
    presence_penalty, frequency_penalty: subtracted once per recent token, and per occurrence.
    penalty_window: how many of the latest ids count as recent; 0 switches the penalties off, -1 is
        all of them.
    dry_multiplier: "don't repeat yourself"; 0 switches it off. A token that would go on repeating
        the latest n >= dry_allowed_length tokens loses dry_multiplier * dry_base **
        (n - dry_allowed_length).
    dry_sequence_breakers: no repeat reaches across a token whose text holds one of these strings,
        nor across a control token. One string is taken as such.
    dry_window: how many of the latest ids it looks at; -1 is all.
    logit_bias: added to logits before all else, by token id; -100 rules a token out, 100 rules out
        all others. A mapping, or pairs.
    samplers: what applies, in this order, of "penalties", "dry", "min_p", "temperature", "top_k",
        "top_p"; what is left out does not apply. A list, or names with commas between.
    max_tokens: the most tokens to generate; None or -1 is as many as the context holds.
    stop: strings that end the answer; they are not part of it. One string is taken as such.
    seed: None or -1 draws a fresh one, which `Sampler.seed` tells.
    """

    temperature: float | None = None
    top_k: int = 0
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 1024
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_sequence_breakers: tuple[str, ...] = BREAKERS
    dry_window: int = 4096
    logit_bias: tuple[tuple[int, float], ...] = ()
    samplers: tuple[str, ...] = SAMPLERS
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if value is None and field.default is not MISSING:
                value = field.default
            if value is not None:
                value = _checked(field.name, value)
            object.__setattr__(self, field.name, value)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Parameters by name; an unknown name is a RequestError that lists the known ones."""
        if not isinstance(options, Mapping):
            raise RequestError(f"sampling parameters must be a mapping, not {quoted(options)}.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known), key=quoted)
        if unknown:
            raise RequestError(
                f"unknown sampling parameter {quoted(unknown[0])}; known are {', '.join(known)}."
            )
        return cls(**options)

    def with_defaults(self, defaults: SamplingParams) -> SamplingParams:
        """The same with every None taken from `defaults`."""
        check_type("defaults", defaults, SamplingParams)
        missing = {
            name: getattr(defaults, name) for name in _OPTIONAL if getattr(self, name) is None
        }
        return replace(self, **missing)


def _checked(name: str, value: Any) -> object:
    """The value in its own type; RequestError."""
    if name in INTERVALS:
        return _in_interval(name, value)
    if name in COUNTS:
        return _count(name, value)
    if name == "logit_bias":
        return _biases(value)
    return _sampler_names(value) if name == "samplers" else _texts(name, value)


def _in_interval(name: str, value: Any) -> float:
    low, high, closed = INTERVALS[name]
    fits = is_number(value) and low <= value <= high and (closed or value > low)
    if not fits:  # NaN fails every comparison
        interval = f"{'[' if closed else '('}{low:g}, {high:g}]"
        raise RequestError(f"{name} must be a number in {interval}, not {quoted(value)}.")
    return float(value)


def _count(name: str, value: Any) -> int | None:
    lowest, highest = COUNTS[name]
    number = whole(value)
    if number == -1 and name in _MINUS_ONE:
        return _MINUS_ONE[name]
    if number is None or not lowest <= number <= highest:
        allowed = f"[{lowest}, {highest}]" + (", or -1" if name in _MINUS_ONE else "")
        raise RequestError(f"{name} must be a whole number in {allowed}, not {quoted(value)}.")
    return number


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(s, str) and s for s in texts):
        raise RequestError(f"{name} must be strings that are not empty, not {quoted(value)}.")
    return tuple(texts)


def _biases(value: Any) -> tuple[tuple[int, float], ...]:
    """By id, each once; JSON writes ids as texts."""
    pairs = value.items() if isinstance(value, Mapping) else value
    is_list = isinstance(value, (Mapping, list, tuple))
    if not is_list or any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in pairs):
        raise RequestError(
            f"logit_bias must be numbers by token id, such as {{'42': -100}}, not {quoted(value)}."
        )
    found: dict[int, float] = {}
    for key, bias in pairs:
        is_digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
        token_id = int(key) if is_digits else whole(key)
        if token_id is None or token_id < 0:
            raise RequestError(f"logit_bias must be by token ids, not {quoted(key)}.")
        if not is_number(bias) or not -MOST_BIAS <= bias <= MOST_BIAS:
            raise RequestError(
                f"logit_bias of token {token_id} must be a number in [{-MOST_BIAS:g}, "
                f"{MOST_BIAS:g}], not {quoted(bias)}."
            )
        found[token_id] = float(bias)
    return tuple(sorted(found.items()))


def _sampler_names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(s, str) for s in names):
        raise RequestError(
            f"samplers must be names such as {','.join(SAMPLERS)}, not {quoted(value)}."
        )
    names = tuple(s.strip() for s in names)
    unknown = [s for s in names if s not in SAMPLERS]
    if unknown:
        raise RequestError(f"unknown sampler {unknown[0]!r}; known are {', '.join(SAMPLERS)}.")
    repeated = [s for i, s in enumerate(names) if s in names[:i]]
    if repeated:
        raise RequestError(f"the sampler {repeated[0]!r} is named twice; each applies once.")
    return names


# What the makers recommend, (temperature, top_p) by (format, thinking). They name no min_p; 0.01
# trims the tail of unlikely tokens that low-bit quantisation raises.
_DEFAULTS: Mapping[tuple[str, bool], tuple[float, float]] = MappingProxyType(
    {
        ("kimi-k2.5", True): (1.0, 0.95),
        ("kimi-k2.5", False): (0.6, 0.95),
        ("kimi-k2.6", True): (1.0, 0.95),
        ("kimi-k2.6", False): (0.6, 0.95),
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
