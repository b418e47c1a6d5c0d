"""Schemas as clients send them: what is enforced, what is loosened, and that it is said."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kimi_vocab
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offload import grammar
from offload.grammar import Grammar, Grammars
from offload.json_schema import DEEPEST, LARGEST, any_object, grammar_of
from offload.kimi_tokenizer import KimiTokenizer

VOCABULARY = KimiTokenizer.from_metadata(kimi_vocab.metadata())
GRAMMARS = Grammars(VOCABULARY)


def takes(grammar: Grammar, value: Any) -> bool:
    """Whether a value, or JSON text, is one of the grammar's."""
    text = grammar.text()
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for token_id in VOCABULARY.encode(written, special=False):
        words = text.bits()
        if not words[token_id >> 5] >> (token_id & 31) & 1:
            return False
        text.push(token_id)
    return text.may_end


def read(schema: Any, *, is_object: bool = True) -> tuple[Grammar, str]:
    grammar, notes = grammar_of(GRAMMARS, schema, "S", is_object=is_object)
    return grammar, "\n".join(notes)


AB = {"a": {"type": "string"}, "b": {"type": "integer"}}
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/N"}},
    "required": ["v"],
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "object", "properties": AB, "required": ["a"]},
            [{"a": "x"}, {"a": "世界", "b": -3}, '{\n  "a": "x",\n  "b": 3\n}', '{"a":"x"}'],
            [{}, {"b": 1}, {"a": 1}, {"b": 1, "a": "x"}, {"a": "x", "c": 1}, "[]", '{"a": "x"'],
        ),
        (
            {
                "type": "object",
                "properties": AB,
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
            [{"a": "x"}, {"b": 1}, {"a": "x", "b": 1}],
            [{}],
        ),
        (
            {"properties": {"a": {"type": "string"}, "b": {"$ref": "#/properties/a"}}},
            [{"b": "x"}],
            [{"b": 1}],
        ),
        (
            {"properties": {"a": {"type": "object", "$ref": "#/$defs/N"}}, "$defs": {"N": NODE}},
            [{"a": {"v": 1, "next": {"v": 2}}}],
            [{"a": {}}, {"a": {"v": 1, "w": 2}}],
        ),
        ({"$ref": "#/$defs/N", "$defs": {"N": NODE}}, [{"v": 1}], [{"v": "1"}]),
        (
            {"properties": {"größe": {"type": "string"}, "世界": {}}, "required": ["世界"]},
            [{"世界": [1, None]}, {"größe": "x", "世界": {}}],
            [{"größe": "x"}],
        ),
        ({"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}, [{"a": "x"}], [{"a": 1}]),
        (
            {
                "allOf": [{"$ref": "#/$defs/N"}, {"properties": {"w": {}}, "required": ["w"]}],
                "$defs": {"N": NODE},
            },
            [{"v": 1, "w": 2}],
            [{"v": 1}, {"w": 1}],
        ),
        (
            {"properties": {"a": {"additionalProperties": {"type": "integer"}, "type": "object"}}},
            [{"a": {"x": 1, "y": 2}}],
            [{"a": {"x": "1"}}],
        ),
        ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
        ({}, [{}, {"a": [1]}], ["[]", "1"]),
        (None, [{"a": 1}], ["1"]),
    ],
)
def test_schemas_are_enforced(schema: Any, good: list[Any], bad: list[Any]) -> None:
    grammar, notes = read(schema)
    assert not notes
    for value in good:
        assert takes(grammar, value), value
    for value in bad:
        assert not takes(grammar, value), value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, '"if", "then"'),
        ({"uniqueItems": True, "not": {"required": ["q"]}}, "not"),
        ({"required": True}, "required true"),
        ({"required": ["zz"], "additionalProperties": False}, "zz"),
        ({"properties": AB | {"c": {"type": "string", "pattern": "(?=x)"}}}, "right type may be c"),
        ({"properties": AB | {"c": {"$ref": "https://example.com/x"}}}, "may be c"),
        ({"properties": AB | {"c": {"$ref": "#/$defs/missing"}}}, "may be c"),
        ({"properties": AB | {"c": {"type": "any"}}}, 'type "any"'),
        ({"properties": AB | {"c": {"type": "string", "format": "mine"}}}, "mine"),
        ({"properties": AB | {"c": {"type": "integer", "minimum": "3"}}}, "may be c"),
    ],
)
def test_what_cannot_be_enforced_is_left_out_and_the_rest_stays(
    change: dict[str, Any], said: str
) -> None:
    grammar, notes = read({"type": "object", "properties": AB, "required": ["a"]} | change)
    assert said in notes
    assert "S is loosened" in notes
    assert takes(grammar, {"a": "x", "b": 1})
    assert not takes(grammar, {"a": "x", "b": "1"})
    assert not takes(grammar, "[]")


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        [],
        "x",
        3,
        {"type": "object", "properties": {"a": float("nan")}},
        {"type": "object", "description": {1, 2}},
        deep(DEEPEST),
        deep(100_000),
        {"type": "object", "description": "x" * LARGEST},
        {"type": "string"},
        {"type": "object", "properties": {"a": {"enum": ["\ud800"]}}},
        {"type": "object", "description": "\ud800"},
        {"type": "object", "properties": {"a": {"pattern": "(?=x)"}}, "minProperties": -1},
    ],
)
def test_whatever_else_comes_is_an_object_at_least(schema: Any) -> None:
    grammar, notes = read(schema)
    assert "S is loosened" in notes
    assert takes(grammar, {}) or takes(grammar, {"a": "x"})
    assert not takes(grammar, "[]")


def test_other_values_than_objects_where_they_are_allowed() -> None:
    grammar, notes = read({"type": "array", "items": {"enum": [1, "b"]}}, is_object=False)
    assert not notes
    assert takes(grammar, [1, "b"])
    assert not takes(grammar, {})
    grammar, notes = read({"type": "array", "items": {"pattern": "(?=x)"}}, is_object=False)
    assert "its type" in notes
    assert takes(grammar, ["y"])
    assert not takes(grammar, {})


def test_white_space_is_bounded() -> None:
    grammar = any_object(GRAMMARS)
    assert takes(grammar, '{\n\t\t"a" : 1 }')
    assert not takes(grammar, "{  }")
    assert not takes(grammar, "{\n" + " " * 41 + "}")
    assert not takes(grammar, "{\n\n\n}")


def test_answers_share_a_grammar_and_not_its_state() -> None:
    grammar = any_object(GRAMMARS)
    first, second = grammar.text(), grammar.text()
    for token_id in VOCABULARY.encode("{}"):
        first.push(token_id)
    assert first.must_end
    assert not second.may_end


@pytest.mark.parametrize("limit", ["KEPT", "KEPT_CHARACTERS"])
def test_grammars_are_made_once_and_forgotten_in_turn(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    schemas = [{"required": [name]} for name in "abc"]
    monkeypatch.setattr(grammar, limit, 2 if limit == "KEPT" else 2 * len(json.dumps(schemas[0])))
    grammars = Grammars(VOCABULARY)

    def made(number: int) -> Grammar | None:
        return grammars.make(schemas[number], lenient=False)[0]

    first, second = made(0), made(1)
    assert made(0) is first
    assert made(2) is made(2)
    assert made(1) is second
    assert made(0) is not first


def test_a_grammar_made_in_one_thread_is_used_in_others() -> None:
    with ThreadPoolExecutor(4) as pool:
        made = pool.submit(any_object, GRAMMARS).result()
        texts = [json.dumps({"n": list(range(i))}) for i in range(40)]
        assert all(pool.map(lambda text: takes(made, text), texts))
        text = pool.submit(made.text).result()
    for token_id in VOCABULARY.encode("{}"):
        text.push(token_id)
    assert text.must_end


_WORDS = st.sampled_from(
    ["a", "b", "object", "string", "integer", "#", "#/$defs/a", "^a+$", "date"]
)
_VALUES = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=True) | _WORDS
_KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "items", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs"]
    + ["enum", "const", "minimum", "maxLength", "minItems", "maxItems", "pattern", "format", "if"]
    + ["then", "additionalProperties", "patternProperties", "prefixItems", "a", "b", "x-guidance"]
)
_ANYTHING = st.recursive(
    _VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@example({"$ref": "#"}, False)
@example({"anyOf": [], "properties": {"type": False}}, False)
@given(_ANYTHING, st.booleans())
def test_no_schema_is_an_error(schema: Any, is_object: bool) -> None:
    made, _ = read(schema, is_object=is_object)
    text = made.text()
    assert text.bits().any()
    assert not is_object or not takes(made, "[1]")


@pytest.mark.parametrize("before", [{}, AB], ids=["alone", "behind others"])
def test_what_the_library_gives_up_on_later_is_loosened_at_once(before: dict[str, Any]) -> None:
    hard = {"type": "string", "pattern": "^(a?){500}a{500}$"}
    given = {**before, "hard": hard}
    grammar, notes = read({"type": "object", "properties": given, "required": [*given]})
    assert "anything of the right type may be hard" in notes
    assert takes(grammar, {**({"a": "x", "b": 3} if before else {}), "hard": "b" * 600})
    assert not takes(grammar, {**({"a": 3, "b": 3} if before else {}), "hard": 3})


def test_more_properties_than_the_library_can_follow_are_any_object() -> None:
    many = {f"p{i}": {"type": "string"} for i in range(1000)}
    grammar, notes = read({"type": "object", "properties": many})
    assert "Current row" in notes
    assert "nothing is enforced but its type" in notes
    assert takes(grammar, {"p999": "x", "other": 3})
