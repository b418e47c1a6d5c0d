"""Calls with marks that are missing, doubled, swapped or strewn in: what can be read, is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_time import takes_less_than
from replies import (
    ARGUMENTS,
    CALL,
    END_CALL,
    END_SECTION,
    MARKS,
    ONE_TOOL,
    SECTION,
    TOOLS,
    bytes_of,
    call,
    joined,
    kimi,
    read,
    read_ids,
    reader_of,
    section,
)

S, C, A, X, E = SECTION, CALL, ARGUMENTS, END_CALL, END_SECTION
WEATHER = '{"city": "Beijing"}'
ID, ADD_ID, SUM = "functions.get_weather:0", "functions.add:1", '{"a": 1}'
BEIJING = ("call", ID, "get_weather", WEATHER)
ADD = ("call", ADD_ID, "add", SUM)


@pytest.mark.parametrize(
    "text",
    [
        f"{S}{ID}{WEATHER}{X}{E}", f"{S}{ID}{WEATHER}{E}", f"{S}\n{ID}\n{WEATHER}\n",
        f"{S}I call {ID} {WEATHER}{E}", f"{S}get_weather {WEATHER}{E}",
        f"{S}{ID}```json\n{WEATHER}\n```{E}", f"{S}{A}{ID}{C}{WEATHER}{X}{E}",
        f"{S}{C}{ID}{C}{WEATHER}{X}{E}", f"{S}{C}{ID}{X}{WEATHER}{X}{E}",
        f"{S}{C}{ID}{E}{WEATHER}{X}{E}", f"{S}{ID}{C}{A}{WEATHER}{X}{E}",
        f"{S}{C}{A}{ID}{WEATHER}{X}{E}", f"{S}{C}{ID}{WEATHER}{A}{X}{E}",
        f"{S}{C}{ID}{A}{X}{WEATHER}{E}", f"{S}{C}{ID}{A}{E}{WEATHER}{X}{E}",
        f"{C}{ID}{C}{WEATHER}{X}", f"{C}{ID}{X}{WEATHER}{X}", f"{ID}{A}{WEATHER}{X}{E}",
        f'{S}{C}{ID}{A}{{"city"{X}: "Beijing"}}{X}{E}', f'{S}{C}{ID}{A}{{{S}"city": "Beijing"}}{X}',
        f'{S}{json.dumps({"name": "get_weather", "arguments": {"city": "Beijing"}})}{E}',
        f'{S}[{json.dumps({"name": "get_weather", "arguments": {"city": "Beijing"}})}]{E}',
    ],
)  # fmt: skip
def test_a_call_is_read(text: str) -> None:
    assert [one[2:] for one in read(text)] == [("get_weather", WEATHER)]
    assert [one[2:] for one in read(text, ONE_TOOL)] == [("get_weather", WEATHER)]
    got = read(f"hm {text}", in_thinking=True)
    assert [got[0], *(one[2:] for one in got[1:])] == [
        ("reasoning", "hm"), ("get_weather", WEATHER),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        f"{S}{ID}{WEATHER}{ADD_ID}{SUM}{E}", f"{S}\n{ID} {WEATHER}\n{ADD_ID} {SUM}\n{E}",
        f"{S}{call(ID, WEATHER)}{ADD_ID}{SUM}{X}{E}", f"{call(ID, WEATHER)}{ADD_ID}{SUM}{X}",
        f"{S}{C}{ID}{A}{WEATHER}{ADD_ID}{SUM}{X}{E}", f"{S}{ID}{WEATHER}{call(ADD_ID, SUM)}{E}",
        f"{S}{C}{ID}{A}{X}{WEATHER}{ADD_ID}{A}{SUM}{X}{E}",
        f"{S}{C}{ID}{WEATHER}{ADD_ID}{A}{SUM}{X}{E}", f"{C}{ID}{WEATHER}{ADD_ID}{A}{SUM}{X}",
        f"{S}{C}{ID}{X}{WEATHER}{C}{ADD_ID}{X}{SUM}{E}",
        f"{S}{C}{ID}{A}{WEATHER}\ufffd.{ADD_ID} {A} {SUM}{X}{E}",
    ],
)  # fmt: skip
def test_two_calls_are_read(text: str) -> None:
    assert read(text) == [BEIJING, ADD]


def test_a_call_that_runs_into_the_next_one_keeps_no_more_than_its_own() -> None:
    broken = '{"city": "Beijing functions.add:1'
    for text in (f"{S}{C}{ID}{A}{broken}{A}{SUM}{X}{E}", f"{C}{ID}{A}{broken} {A}{SUM}<|im_end|>"):
        first, second = read(text)
        assert first[3].strip() == broken
        assert second == ADD
    quoted = json.dumps({"city": f"{ADD_ID}{A}{SUM}"})
    assert read(section(call(ID, quoted))) == [("call", ID, "get_weather", quoted)]


@pytest.mark.parametrize(
    "text",
    [
        f"{S}{C}{C}{ID}{A}{WEATHER}{X}{E}", f"{C}{S}{ID}{A}{WEATHER}{X}{E}",
        f"{S}{C}{ID}{A}{WEATHER}{X}{C}", f"{S}{C}{ID}{A}{WEATHER}{C}{X}{E}{S}{E}",
    ],
)  # fmt: skip
def test_marks_in_text_beside_a_call_are_not_shown(text: str) -> None:
    for vocabulary in (kimi(), kimi(MARKS)):
        assert read(f"So.{text}<|im_end|>", vocab=vocabulary) == [("content", "So."), BEIJING]
    assert read(f"The mark is {C}", vocab=kimi(MARKS)) == [("content", f"The mark is {C}")]


def test_calls_without_arguments_stay_calls() -> None:
    for between in ("", "\n", "so "):
        text = section(f"{C}add{X}{between}{C}{ADD_ID}{A}{X}{between}")
        assert [one[2:] for one in read(text)] == [("add", "{}"), ("add", "{}")]
        assert [one[2:] for one in read(f"{text}<|im_end|>")] == [("add", "{}"), ("add", "{}")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (f"```json\n{WEATHER}\n```", WEATHER), (f"```\n{WEATHER}```", WEATHER),
        (f"({WEATHER})", WEATHER), (f"json {WEATHER}", WEATHER), (f"{ID}{WEATHER}", WEATHER),
        ("null", "{}"), (f'"{WEATHER}"', WEATHER), ('"city": "Beijing"}', '"city": "Beijing"}'),
        ("Beijing", "Beijing"), (f"the weather in {WEATHER}", f"the weather in {WEATHER}"),
        ('"Beijing"', '"Beijing"'), ('```json\n{"city": "Bei', '```json\n{"city": "Bei'),
    ],
)  # fmt: skip
def test_an_object_in_a_fence_or_behind_a_word_counts_alone(written: str, meant: str) -> None:
    for tools in (TOOLS, ONE_TOOL):
        assert read(section(call(ID, written)), tools) == [("call", ID, "get_weather", meant)]


def test_control_characters_in_strings_become_escapes() -> None:
    for written, meant in [
        ('{"a": "x\n\ty",\n"b": "\\n"}', '{"a": "x\\n\\ty",\n"b": "\\n"}'),
        ('"{\\"a\\":\n\\"x\\"}"', '{"a":\n"x"}'),
    ]:
        got = read(section(call(ADD_ID, written)))
        assert got == [("call", ADD_ID, "add", meant)]
        assert json.loads(got[0][3])["a"] in ("x", "x\n\ty")


def test_arguments_do_not_wait_for_what_may_follow_them() -> None:
    reader = reader_of()
    written = [*kimi().encode(f"{S}{C}{ID}{A}"), *bytes_of(WEATHER)]
    shown = [piece for i in written for piece in reader.push(i)]
    assert joined(shown) == [BEIJING]


@pytest.mark.parametrize(
    "text",
    [
        f"{ID}{WEATHER}", f"Use {ID} {WEATHER}.", "functions.", "functions.a functions.add:1",
        f"{ID}{WEATHER}{X}{E}", f"functions.nobody:0{A}{WEATHER}{X}", f"By {ID}{A}", f"{ID}{A} I",
        f"get_weather{A} said so {WEATHER}", f"{ID}{A}{X}, functions.{A}",
    ],
)  # fmt: skip
def test_text_without_the_marks_of_a_call_is_no_call(text: str) -> None:
    plain = text.replace(A, "").replace(X, "").replace(E, "")
    assert read(text) == [("content", plain)]
    assert read(text, in_thinking=True) == [("reasoning", plain)]
    after = read(text + section(call(ADD_ID, SUM)))
    assert after == [("content", plain), ADD]


def test_prose_in_a_section_is_no_call() -> None:
    for stray in (f"I will use get_weather with {WEATHER}", f"{ID} then {WEATHER}", f"x {WEATHER}"):
        assert read(section(stray)) == [("content", section(stray))]
        assert read(section(call(ADD_ID, SUM) + stray)) == [ADD]


@pytest.mark.parametrize("said", ["", "So"])
def test_an_answer_that_is_cut_shows_neither_marks_nor_half_an_id(said: str) -> None:
    whole = kimi().encode(f"{S}{C}functions.get_weather:1")
    content = [("content", said)] if said else []
    for begun in (whole[:n] for n in range(len(whole) + 1)):
        assert joined(read_ids([*kimi().encode(said), *begun])) == content
        after = [*kimi().encode(said + section(call(ADD_ID, SUM)).removesuffix(E)), *begun[1:]]
        assert joined(read_ids(after)) == [*content, ADD]
    for place in range(1, len(ID) + 1):
        begun_in_text = f"{said}{S}{C}{ID[:place]}<|tool_call_arg"
        assert read(begun_in_text, vocab=kimi(MARKS)) == content
    half = [*kimi().encode(f"{S}{C}functions."), bytes_of("看")[0]]
    assert read_ids(half) == []
    assert read(f"{S}{C}{ID} {WEATHER[:8]}") == [("call", ID, "get_weather", WEATHER[:8])]


# --- properties

NAMES = ["get_weather", "add", "read-file", "看天气"]
VALUES = st.text(alphabet='ab{}":,\\ \n世', max_size=8) | st.integers() | st.lists(st.booleans())
CALLS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.dictionaries(st.text(alphabet='k"{ ', min_size=1, max_size=3), VALUES, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(st.data(), CALLS, st.booleans())
def test_one_mark_amiss_loses_no_call(data: Any, calls: Any, in_thinking: bool) -> None:
    texts = [json.dumps(arguments, ensure_ascii=False) for _, arguments in calls]
    parts = [S]
    for number, ((name, _), text) in enumerate(zip(calls, texts, strict=True)):
        parts += (C, f"functions.{name}:{number}", A, text, X)
    parts.append(E)
    place = data.draw(st.integers(0, len(parts) - 1))
    strewn = data.draw(st.sampled_from(MARKS))
    how = data.draw(st.sampled_from(["drop", "double", "swap", "strew"]))
    if how == "swap" and place:
        parts[place - 1 : place + 1] = parts[place], parts[place - 1]
    elif how == "strew":
        parts.insert(place, strewn)
    elif parts[place] in MARKS:
        parts[place : place + 1] = [parts[place]] * (2 if how == "double" else 0)
    ids = [i for part in parts for i in kimi().encode(part, special=part in MARKS)]
    got = joined(read_ids([*ids, *kimi().encode("<|im_end|>")], in_thinking=in_thinking))
    assert [one[2:] for one in got if one[0] == "call"] == [
        (name, text) for (name, _), text in zip(calls, texts, strict=True)
    ]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("before", ["text ", ADD_ID, f'{ADD_ID}", "{{'])
def test_marks_in_a_string_that_is_never_closed_take_linear_time(mark: str, before: str) -> None:
    ids = kimi().encode(f'{S}{C}add{A}{{"a": "' + f"{before}{mark}" * 2_000)
    with takes_less_than(3):  # 0.5 s; quadratic was 40 s
        read_ids(ids)


@pytest.mark.parametrize(
    "body", ["{" * 15_000, "add {" * 6_000, 'add {"' * 5_000, "functions." * 3_000, " " * 30_000]
)
def test_loose_text_of_any_length_takes_linear_time(body: str) -> None:
    ids = bytes_of(body)
    with takes_less_than(3):  # 0.4 s; quadratic would be 10 s and more
        read_ids([*kimi().encode(S), *ids, *kimi().encode(E)])
        read_ids([*kimi().encode(f"{S}{C}add{A}"), *ids, *kimi().encode(E)])
        read_ids(ids)
