"""Sampling parameters: ranges, None, -1, names, the defaults of the models."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from offload.errors import RequestError
from offload.sampling_params import SamplingParams, defaults_for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be a number in \[0, 10\], not -0.1"),
        ({"temperature": float("nan")}, "not nan"),
        ({"temperature": "1"}, "not '1'"),
        ({"temperature": True}, "not True"),
        ({"top_p": 0}, r"top_p must be a number in \(0, 1\], not 0"),
        ({"top_p": 1.01}, "not 1.01"),
        ({"min_p": 1.5}, r"min_p must be a number in \[0, 1\]"),
        ({"top_k": -2}, r"top_k must be a whole number in \[0, 2147483647\], or -1, not -2"),
        ({"top_k": 1.5}, "whole number"),
        ({"repetition_penalty": 0}, r"\(0, 10\]"),
        ({"presence_penalty": 3}, r"\[-2, 2\]"),
        ({"frequency_penalty": 10**400}, r"\[-2, 2\]"),
        ({"temperature": 1j}, r"\[0, 10\]"),
        ({"max_tokens": 0}, r"\[1, "),
        ({"seed": -2}, r"seed must be a whole number in \[0, 18446744073709551615\], or -1"),
        ({"seed": 2**64}, "not 18446744073709551616"),
        ({"seed": 10**5000}, "a value of type int"),
        ({"seed": 0.5}, "seed"),
        ({"dry_multiplier": -1}, r"dry_multiplier must be a number in \[0, 100\]"),
        ({"dry_base": 0.5}, r"dry_base must be a number in \[1, 10\]"),
        ({"dry_allowed_length": 0}, r"dry_allowed_length must be a whole number in \[1, "),
        ({"dry_window": -2}, "or -1, not -2"),
        ({"dry_sequence_breakers": ["\n", ""]}, "dry_sequence_breakers must be strings"),
        ({"samplers": "top_k,typical"}, "unknown sampler 'typical'; known are penalties, dry"),
        ({"samplers": ""}, "unknown sampler ''"),
        ({"samplers": ["top_k", "min_p", "top_k"]}, "'top_k' is named twice"),
        ({"samplers": 5}, "samplers must be names such as penalties,dry"),
        ({"samplers": [1]}, "samplers must be names"),
        ({"seed": float("inf")}, "seed"),
        ({"stop": [""]}, "not empty"),
        ({"stop": [1]}, "not empty"),
        ({"stop": 5}, "not empty"),
        ({"stop": b"x"}, "not empty"),
        (
            {"logit_bias": {5: 101}},
            r"logit_bias of token 5 must be a number in \[-100, 100\], not 10",
        ),
        ({"logit_bias": {5: float("nan")}}, "not nan"),
        ({"logit_bias": {"5": True}}, "not True"),
        ({"logit_bias": {"x": 1}}, "by token ids, not 'x'"),
        ({"logit_bias": {"-5": 1}}, "by token ids, not '-5'"),
        ({"logit_bias": {-5: 1}}, "by token ids, not -5"),
        ({"logit_bias": {"9" * 5000: 1}}, "by token ids"),
        ({"logit_bias": 3}, "such as {'42': -100}, not 3"),
        ({"logit_bias": [5, 1]}, "such as"),
        ({"logit_bias": "ab"}, "such as"),
    ],
)
def test_bad_parameters_name_the_interval_and_the_value(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**options)


def test_parameters_are_normalised() -> None:
    params = SamplingParams(temperature=1, top_k=np.int64(3), stop="x", seed=2**64 - 1)
    assert isinstance(params.temperature, float)
    assert type(params.top_k) is int
    assert params.stop == ("x",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams.from_options({"top_p": 0.5}).top_p == 0.5
    with pytest.raises(RequestError, match=r"'topp'; known are temperature"):
        SamplingParams.from_options({"topp": 0.5})


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_none_is_the_default_of_every_field(name: str) -> None:
    assert SamplingParams(**{name: None}) == SamplingParams()


def test_minus_one_is_unset_as_elsewhere() -> None:
    for name in ("top_k", "max_tokens", "seed"):
        assert SamplingParams(**{name: -1}) == SamplingParams()
    for name in ("penalty_window", "dry_window"):
        assert getattr(SamplingParams(**{name: -1}), name) > 10**9


def test_biases_are_by_id() -> None:
    expected = ((3, -100.0), (20, 0.5))
    for given in (
        {"20": 0.5, 3: -100},
        {np.int64(20): 0.5, "3": -100},
        expected,
        [[20, 0.5], (3, -100)],
    ):
        assert SamplingParams(logit_bias=given).logit_bias == expected
    assert SamplingParams(logit_bias={}).logit_bias == ()


def test_white_space_is_a_stop_string() -> None:
    assert SamplingParams(stop="\n").stop == ("\n",)
    assert SamplingParams(stop=[" ", "\n\n"]).stop == (" ", "\n\n")


def test_samplers_are_names_in_any_form() -> None:
    expected = ("temperature", "top_k")
    for given in ("temperature,top_k", " temperature , top_k", ["temperature", "top_k"], expected):
        assert SamplingParams(samplers=given).samplers == expected
    assert SamplingParams(samplers=()).samplers == ()


@pytest.mark.parametrize(
    ("name", "thinking", "temperature", "top_p"),
    [
        ("kimi-k2.5", True, 1.0, 0.95),
        ("kimi-k2.5", False, 0.6, 0.95),
        ("kimi-k2-thinking", True, 1.0, 1.0),
        ("kimi-k2", False, 0.6, 1.0),
        ("moonlight", False, 0.7, 0.95),
        ("template", True, 0.7, 0.95),
    ],
)
def test_defaults(name: str, thinking: bool, temperature: float, top_p: float) -> None:
    defaults = defaults_for(name, thinking)
    assert (defaults.temperature, defaults.top_p) == (temperature, top_p)
    own = SamplingParams(temperature=0, max_tokens=5).with_defaults(defaults)
    assert (own.temperature, own.top_p, own.min_p, own.max_tokens) == (0, top_p, 0.01, 5)
