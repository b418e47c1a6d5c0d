"""From the fields of a request to sampling and wishes: null is the default, -1 is unset.

Fields are looked up by name; all others are left alone, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offload.arguments import quoted, whole
from offload.server.errors import refused
from offload.server.limits import CHOICES, Body
from offload.wishes import MOST_LOGPROBS

# field of SamplingParams -> names in requests, the first one that is given counts
_NAMES = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "frequency_penalty": ("frequency_penalty",),
    "presence_penalty": ("presence_penalty",),
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
    "penalty_window": ("penalty_window", "repeat_last_n"),
    "logit_bias": ("logit_bias",),
    "dry_multiplier": ("dry_multiplier",),
    "dry_base": ("dry_base",),
    "dry_allowed_length": ("dry_allowed_length",),
    "dry_window": ("dry_window", "dry_penalty_last_n"),
    "dry_sequence_breakers": ("dry_sequence_breakers",),
    "seed": ("seed",),
    "stop": ("stop", "stop_sequences"),
    "max_tokens": ("max_completion_tokens", "max_tokens", "n_predict"),
}
_UNSET = -1  # for every number that cannot be negative
_MAY_BE_NEGATIVE = ("frequency_penalty", "presence_penalty", "penalty_window", "dry_window")


def first(body: Body, *names: str) -> Any:
    """The value of the first of these fields that is given and not null; None."""
    return next((body[name] for name in names if body.get(name) is not None), None)


def read_sampling(body: Body) -> dict[str, Any]:
    """Fields of SamplingParams that are given; their values are checked by it."""
    found = {field: first(body, *names) for field, names in _NAMES.items()}
    given = {field: value for field, value in found.items() if value is not None}
    for field in list(given):
        is_unset = whole(given[field]) == _UNSET and field not in _MAY_BE_NEGATIVE
        if is_unset or given[field] in ([], ""):
            del given[field]
    if isinstance(given.get("stop"), list):
        given["stop"] = [text for text in given["stop"] if text != ""]
    return given


def with_defaults(body: Body, defaults: Mapping[str, Any]) -> Body:
    """A body with fields that it does not give, by the names of SamplingParams and ChatWishes."""
    missing = {
        field: value
        for field, value in defaults.items()
        if first(body, *_NAMES.get(field, (field,))) is None
    }
    if "thinking_budget" in missing and _budget(body) is not None:
        del missing["thinking_budget"]
    return {**body, **missing} if missing else body


def seeded(sampling: dict[str, Any], index: int) -> dict[str, Any]:
    """The same for another choice: with a seed of its own, where one is given."""
    seed = whole(sampling.get("seed"))
    return sampling if seed is None or not index else sampling | {"seed": (seed + index) % 2**64}


def read_flag(body: Body, name: str) -> bool:
    """A field that is true or false; null and its absence are false."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise refused(f"{name} must be true or false, not {quoted(value)}", param=name)
    return bool(value)


def read_count(body: Body, name: str, most: int = CHOICES) -> int:
    """A count from 1 on; null, -1 and its absence are 1."""
    number = 1 if body.get(name) is None else whole(body[name])
    if number == _UNSET:
        return 1
    if number is None or not 1 <= number <= most:
        raise refused(
            f"{name} must be a whole number from 1 to {most}, not {quoted(body[name])}", param=name
        )
    return number


def read_top_logprobs(body: Body) -> int:
    """How many likeliest tokens are told beside each."""
    top = body.get("top_logprobs")
    number = whole(0 if top is None else top)
    if number is None or not 0 <= number <= MOST_LOGPROBS:
        raise refused(
            f"top_logprobs must be a whole number from 0 to {MOST_LOGPROBS}, not {quoted(top)}",
            param="top_logprobs",
        )
    return number


def read_wishes(body: Body) -> dict[str, Any]:
    """Fields of ChatWishes that are given; their values are checked by it."""
    wishes = {
        "thinking": _thinking(body),
        "preserve_thinking": _preserve(body),
        "thinking_budget": _budget(body),
        "tools": None if body.get("tools") == [] else body.get("tools"),
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "parallel_tool_calls": body.get("parallel_tool_calls"),
        "response_format": body.get("response_format"),
        "stop_loops": body.get("stop_loops"),
    }
    return {name: value for name, value in wishes.items() if value is not None}


def _object(body: Body, name: str) -> Body:
    """A field that is an object, or {}; `reasoning: "high"` and the like are no error."""
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def _thinking(body: Body) -> bool | None:
    switch = first(_object(body, "chat_template_kwargs"), "thinking", "enable_thinking")
    if isinstance(switch, bool):
        return switch
    thinking = body.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else thinking
    if isinstance(kind, bool):
        return kind
    if kind in ("enabled", "disabled"):
        return bool(kind == "enabled")
    if isinstance(enabled := first(body, "enable_thinking"), bool):
        return enabled
    reasoning = _object(body, "reasoning")
    if isinstance(enabled := reasoning.get("enabled"), bool):
        return enabled
    effort = first(body, "reasoning_effort") or reasoning.get("effort")
    return False if effort == "none" else None


def _preserve(body: Body) -> bool | None:
    kept = first(_object(body, "chat_template_kwargs"), "preserve_thinking")
    kept = first(body, "preserve_thinking") if kept is None else kept
    if kept is None and "keep" in (thinking := _object(body, "thinking")):
        return None if thinking["keep"] is None else bool(thinking["keep"] == "all")
    return kept if isinstance(kept, bool) else None


def _budget(body: Body) -> Any:
    budget = first(body, "thinking_budget", "thinking_budget_tokens", "reasoning_budget")
    if budget is None:
        budget = _object(body, "thinking").get("budget_tokens")
    if budget is None:
        budget = _object(body, "reasoning").get("max_tokens")
    return None if whole(budget) == _UNSET else budget


def _tool_choice(choice: Any) -> Any:
    """The word, alone or as a type, or the name of the function."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") in ("auto", "none", "required"):
        return choice["type"]
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    if not isinstance(name, str) or not name:
        raise refused(
            "tool_choice must be a word, or {'type': 'function', 'function': {'name': NAME}}, not "
            f"{quoted(choice)}",
            param="tool_choice",
        )
    return name
