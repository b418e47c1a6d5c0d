"""What is read of an answer: reasoning, content, calls, and whatever models make of them."""

from __future__ import annotations

import json
from typing import Any

import kimi_vocab
import pytest
from hypothesis import example, given, settings
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
    tool,
)

from offload.reply_parser import ReplyParser
from offload.tools import read_tools

WEATHER = '{"city": "Beijing"}'
BEIJING = ("call", "functions.get_weather:0", "get_weather", WEATHER)
ADD = ("call", "functions.add:1", "add", '{"a": 1}')


def reasoning(text: str) -> tuple[str, str]:
    return ("reasoning", text)


def content(text: str) -> tuple[str, str]:
    return ("content", text)


# --- reasoning and content


@pytest.mark.parametrize(
    ("text", "started", "pieces"),
    [
        ("2+2 \n</think>\n\n4 \n<|im_end|>", True, [reasoning("2+2"), content("4 \n")]),
        ("<think>2 + 2</think>4", True, [reasoning("2 + 2"), content("4")]),
        ("<think>2</think>4<|im_end|>", False, [reasoning("2"), content("4")]),
        ("<think></think>4", False, [content("4")]),
        ("no thoughts", False, [content("no thoughts")]),
        (" leading", False, [content(" leading")]),
        (" \n", False, [content(" \n")]),
        ("cut short ", True, [reasoning("cut short")]),
        ("世<|im_user|>界[EOS][EOT]", False, [content("世界")]),
        ("</think> \n ", True, []),
        ("a\n\nb </think> x  y", True, [reasoning("a\n\nb"), content("x  y")]),
    ],
)
def test_reasoning_apart_from_content(text: str, started: bool, pieces: Any) -> None:
    assert read(text, in_thinking=started) == pieces


def test_white_space_after_an_instant_prompt_is_dropped() -> None:
    assert read("\n\nHi", after_thinking=True) == [content("Hi")]
    assert read("\n\nHi", after_thinking=True, after_content=True) == [content("\n\nHi")]


def test_a_character_cut_by_a_mark_ends() -> None:
    ids = [bytes_of("世")[0], *kimi().encode("</think>x")]
    assert joined(read_ids(ids, in_thinking=True)) == [reasoning("\ufffd"), content("x")]


@pytest.mark.parametrize(
    ("text", "started", "pieces"),
    [
        ("<think>why </think> because", False, [reasoning("why"), content("because")]),
        ("why</think>because", True, [reasoning("why"), content("because")]),
        ("a < b </thin", False, [content("a < b </thin")]),
        ("<think>a</think>b 🎉<think>c", False, [reasoning("a"), content("b 🎉"), reasoning("c")]),
    ],
)
def test_marks_of_thinking_in_text(text: str, started: bool, pieces: Any) -> None:
    vocab = kimi(kimi_vocab.THINKS)
    for ids in (vocab.encode(text), bytes_of(text)):
        got = read_ids(ids, (), vocab=vocab, tools=(), in_thinking=started, text_markers=True)
        assert joined(got) == pieces


def test_marks_of_thinking_in_text_are_text_where_nobody_said_so() -> None:
    vocab = kimi(kimi_vocab.THINKS)
    assert read("<think>x", vocab=vocab) == [content("<think>x")]


# --- calls as they should be


def test_worked_example() -> None:
    text = "use add</think>" + section(call("functions.add:0", '{"a": 1, "b": 2}')) + "<|im_end|>"
    assert read(text, in_thinking=True) == [
        reasoning("use add"),
        ("call", "functions.add:0", "add", '{"a": 1, "b": 2}'),
    ]


def test_the_head_comes_with_the_mark_and_arguments_as_they_are_written() -> None:
    reader = reader_of()
    *before, mark = kimi().encode(f"{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}")
    assert [piece for i in before for piece in reader.push(i)] == []
    (head,) = reader.push(mark)
    assert head.text == ""
    assert head.call is not None
    assert (head.call.index, head.call.id) == (0, "functions.get_weather:0")
    shown = [piece.text for i in bytes_of(WEATHER) for piece in reader.push(i)]
    assert shown == list(WEATHER)
    assert reader.flush() == []


def test_several_calls_content_before_and_non_ascii_names() -> None:
    text = "Let me see.\n" + section(
        call("functions.read-file:0", '{"path": "a.b"}'),
        call("functions.看天气:1", '{"城市":"京"}'),
    )
    assert read(text) == [
        content("Let me see.\n"),
        ("call", "functions.read-file:0", "read-file", '{"path": "a.b"}'),
        ("call", "functions.看天气:1", "看天气", '{"城市":"京"}'),
    ]
    heads = [piece.call.index for piece in read_ids(kimi().encode(text)) if piece.call]
    assert sorted(set(heads)) == [0, 1]


def test_numbers_go_on_from_the_conversation() -> None:
    own = section(call("functions.add:3"), call("functions.add:4"))
    assert [one[1] for one in read(own, calls=3)] == ["functions.add:3", "functions.add:4"]
    again = section(call("functions.add:0"), call("functions.add:0"), call("add"))
    assert [one[1] for one in read(again, calls=2)] == [
        "functions.add:2", "functions.add:3", "functions.add:4",
    ]  # fmt: skip
    assert read(section(call("functions.add:7"), call("add")))[1][1] == "functions.add:8"


# --- marks that are missing, doubled or elsewhere


@pytest.mark.parametrize(
    "text",
    [
        section(call("functions.get_weather:0", WEATHER)),
        " \n" + section(call("functions.get_weather:0", WEATHER)) + "\n",
        call("functions.get_weather:0", WEATHER),
        call("functions.get_weather:0", WEATHER) + END_SECTION + "Done.",
        SECTION + call("functions.get_weather:0", WEATHER),
        f"{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{WEATHER}{END_SECTION}",
        f"{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{WEATHER}",
        f"{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{ARGUMENTS}{WEATHER}{END_CALL}",
        section(f" stray {call('functions.get_weather:0', WEATHER)} stray "),
        section(call("functions.get_weather:0", WEATHER)) + "That was it.",
        section(call(" functions.get_weather:0\n", f"\n {WEATHER} \n")),
        section(call("functions.get_weather:0", f"{WEATHER} and so on")),
        section(call("functions.get_weather:0", WEATHER) + END_CALL) + END_SECTION,
        SECTION + section(call("functions.get_weather:0", WEATHER)),
        section(f"{CALL}functions.get_weather:0{WEATHER}{END_CALL}"),
        section(call("functions.get_weather:0", json.dumps(WEATHER))),
        section(call("functions.get_weather:0", WEATHER)) + SECTION,
        section(call("functions.get_weather:0", WEATHER)) + section("\n") + " stray",
        section() + call("functions.get_weather:0", WEATHER),
        section(f"{CALL}{call('functions.get_weather:0', WEATHER)}{CALL}"),
        section(f"{CALL} {END_CALL}{call('functions.get_weather:0', WEATHER)}"),
        section(f"{CALL}{SECTION}functions.get_weather:0{ARGUMENTS}{WEATHER}{END_CALL}"),
        section(f"functions.get_weather:0{ARGUMENTS}{WEATHER}{END_CALL}"),
        section(f"I call functions.get_weather:0{ARGUMENTS}{WEATHER}{END_CALL}"),
        section(f"{CALL}{ARGUMENTS}functions.get_weather:0{ARGUMENTS}{WEATHER}{END_CALL}"),
        section(f"{CALL}functions.get_weather:0</think>{ARGUMENTS}{WEATHER}{END_CALL}"),
        section(f"{CALL}functions.get_weather:0{ARGUMENTS}<think>{SECTION}{WEATHER}{END_CALL}"),
        f"{SECTION}{CALL}functions.get_weather:0{WEATHER}",
    ],
)
def test_one_call_is_read(text: str) -> None:
    assert [one[2:] for one in read(text)] == [("get_weather", WEATHER)]
    got = read(f"hm {text}", in_thinking=True)
    assert [got[0], *(one[2:] for one in got[1:])] == [reasoning("hm"), ("get_weather", WEATHER)]


def test_a_name_before_arguments_is_a_call_after_a_call() -> None:
    first, second = (
        call("functions.get_weather:0", WEATHER),
        f'functions.add:1{ARGUMENTS}{{"a": 1}}',
    )
    unclosed = first.removesuffix(END_CALL)
    for text in (
        section(first + second), first + second, section(first) + second,
        section(unclosed + second), unclosed + second,
    ):  # fmt: skip
        assert read(text) == [BEIJING, ADD]
    said = f"Well, functions.get_weather:0{ARGUMENTS}{WEATHER}{END_CALL}{END_SECTION}"
    assert read(said) == [content("Well, "), BEIJING]
    plain = 'Well, functions.get_weather:0 {"city": "Beijing"} functions.'
    assert read(plain) == [content(plain)]
    assert read(f"{plain}</think>", in_thinking=True) == [reasoning(plain)]
    assert read(section(first) + f"nobody{ARGUMENTS}{{}}") == [BEIJING]


@pytest.mark.parametrize("marks", [section(), SECTION, CALL, section(" "), f"{SECTION}\n{CALL}"])
def test_marks_alone_are_given_back_where_nothing_else_is_said(marks: str) -> None:
    assert read(f"{marks}<|im_end|>") == [content(marks)]
    assert read(f"hm {marks}<|im_end|>", in_thinking=True) == [reasoning("hm"), content(marks)]
    assert read(f"So{marks}") == [content("So")]
    assert read(f"{marks}</think>So") == [content("So")]


def test_thinking_that_ends_within_a_call_ends_the_call() -> None:
    begun = f"a{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{WEATHER}</think>b"
    assert read(begun, in_thinking=True) == [reasoning("a"), BEIJING, content("b")]
    dropped = f"a{CALL}</think>b" + section(call("functions.get_weather:0", WEATHER))
    assert read(dropped, in_thinking=True) == [
        reasoning("a"), content("b"), BEIJING,
    ]  # fmt: skip


def test_the_end_of_the_turn_closes_a_call() -> None:
    for begun in ("functions.add:0", f"functions.add:0{ARGUMENTS}", f"functions.add:0{ARGUMENTS} "):
        closed = read(f"{SECTION}{CALL}{begun}<|im_end|>")
        assert closed == [("call", "functions.add:0", "add", "{}")]
    swallowed = f'{SECTION}{CALL}add{ARGUMENTS}{{"a": "{CALL}add{ARGUMENTS}<|im_end|>'
    assert [one[3] for one in read(swallowed)] == ['{"a": "', "{}"]


def test_calls_inside_reasoning_and_content_after_it() -> None:
    inside = f"<think>Look.{section(call('functions.get_weather:0', WEATHER))}And</think>Fine."
    assert read(inside) == [reasoning("Look."), BEIJING, content("Fine.")]


def test_the_next_call_closes_the_one_before() -> None:
    first = f"{CALL}functions.get_weather:0{ARGUMENTS}{WEATHER}"
    for between in ("", "\n", END_SECTION, END_SECTION + SECTION, SECTION):
        text = SECTION + first + between + call("functions.add:1", '{"a": 1}') + END_SECTION
        assert read(text) == [BEIJING, ADD], between
    assert read(first + call("functions.add:1", '{"a": 1}')) == [BEIJING, ADD]


def test_the_singular_spelling_is_read_as_text() -> None:
    text = "<|tool_call_section_begin|>" + call("functions.get_weather:0", WEATHER)
    text += "<|tool_call_section_end|>"
    assert read(text) == [BEIJING]
    assert read("<|tool_call_section_begin|>", (), tools=()) == [
        content("<|tool_call_section_begin|>")
    ]


def test_a_vocabulary_without_the_tokens_writes_them_as_text() -> None:
    vocab = kimi(MARKS)
    text = "So: " + section(call("functions.get_weather:0", WEATHER), call("functions.add:1"))
    expected = [content("So: "), BEIJING, ("call", "functions.add:1", "add", "{}")]
    for ids in (vocab.encode(text), bytes_of(text)):
        assert joined(read_ids(ids, vocab=vocab)) == expected
    half = "a <|tool_calls_sect"
    assert read(half, vocab=vocab) == [content(half)]


@pytest.mark.parametrize("arguments", ["", " ", "{}"])
def test_no_arguments_are_an_empty_object(arguments: str) -> None:
    assert read(section(call("functions.add:0", arguments)))[0][3] == "{}"


def test_arguments_cut_by_the_limit_are_sent_as_they_are() -> None:
    text = f'{SECTION}{CALL}functions.get_weather:0{ARGUMENTS}{{"city": "Bei'
    assert read(text) == [("call", "functions.get_weather:0", "get_weather", '{"city": "Bei')]
    assert read(f"{SECTION}{CALL}functions.add:0{ARGUMENTS}")[0][3] == ""


def test_a_mark_in_a_string_is_text() -> None:
    for mark in MARKS:
        arguments = json.dumps({"city": f"write {mark} so"})
        text = section(call("functions.get_weather:0", arguments), call("functions.add:1"))
        assert read(text) == [
            ("call", "functions.get_weather:0", "get_weather", arguments),
            ("call", "functions.add:1", "add", "{}"),
        ]
        twice = json.dumps({"city": f'{mark}"{mark}'})
        assert read(section(call("functions.get_weather:0", twice)))[0][3] == twice
        inside = json.dumps(arguments)
        assert read(section(call("functions.get_weather:0", inside)))[0][3] == arguments


def test_a_string_that_is_never_closed_swallows_no_other_call() -> None:
    for broken in ('{"city": "Bei', '{"city": "say "hi"}', '{"city": "a\\"}'):
        text = section(call("functions.get_weather:0", broken), call("functions.add:1", '{"a": 1}'))
        assert read(text) == [("call", "functions.get_weather:0", "get_weather", broken), ADD]
        assert read(call("functions.get_weather:0", broken) + "Bye.") == [
            ("call", "functions.get_weather:0", "get_weather", broken)
        ]


# --- ids


@pytest.mark.parametrize(
    "call_id",
    [
        "functions.get_weather:0", "get_weather:0", "functionsget_weather0",
        "functions.get_weather0", "functions_get_weather_0", "functions.get_weather", "get_weather",
        "  get_weather : 0 ", "function.get_weather:12", "default_api.get_weather:0",
        "functions.tools/get_weather:0",
    ],
)  # fmt: skip
def test_names_are_found_in_ids(call_id: str) -> None:
    (one,) = read(section(call(call_id, WEATHER)))
    assert one[2:] == ("get_weather", WEATHER)
    assert one[1].startswith("functions.get_weather:")


@pytest.mark.parametrize("call_id", ["3", "call00003", ":1", "call_ab12", "toolu_01X", "", "fc_9"])
def test_bare_counters_take_the_only_tool_or_the_one_whose_keys_fit(call_id: str) -> None:
    assert read(section(call(call_id, "{}")), ONE_TOOL)[0][2] == "get_weather"
    assert read(section(call(call_id, WEATHER))) == [BEIJING]
    assert read(section(call(call_id, '{"b": 1}')))[0][2] == "add"
    named = json.dumps({"name": "add", "arguments": {"a": 1}})
    assert read(section(call(call_id, named)))[0][2:] == ("add", '{"a": 1}')
    unfit = section(call(call_id, '{"x": 1}'))
    assert read(unfit) == [content(unfit)]


def test_names_that_are_nearly_right_are_found_if_one_alone_is_meant() -> None:
    for call_id in ("functions.Read_File:0", "read_file", "READ-FILE:3"):
        assert read(section(call(call_id)))[0][2] == "read-file"
    two, _ = read_tools([tool("a-b"), tool("a_b")])
    assert read(section(call("A_b")), two)[0][0] == "content"
    assert read(section(call("a_b")), two)[0][2] == "a_b"


def test_names_with_digits_are_exact_first() -> None:
    tools, _ = read_tools([tool("get"), tool("get_3"), tool("functions"), tool("functions_x")])
    for call_id, name in [
        ("functions.get_3:0", "get_3"), ("functions.get_4", "get"), ("functions:0", "functions"),
        ("functions.functions_x:1", "functions_x"), ("functions_x:1", "functions_x"),
    ]:  # fmt: skip
        assert read(section(call(call_id)), tools)[0][2] == name


# --- what is no call


@pytest.mark.parametrize(
    "text",
    [
        section(" nothing "),
        section(call("functions.delete_all:0", "{}")),
        section(f"{CALL}functions.get"),
        section(f"{CALL}functions.delete{END_CALL}"),
        call("functions.delete_all:0", '{"x": 1}'),
        f"{CALL}functions.nob",
    ],
)
def test_what_is_no_call_is_given_back(text: str) -> None:
    assert read(text) == [content(text)]
    assert read(f"hm</think>So {text}", in_thinking=True) == [
        reasoning("hm"),
        content("So " + text),
    ]


def test_marks_of_thinking_end_a_section_and_are_not_given_back() -> None:
    text = f"a{SECTION}x</think>b{SECTION}y<think>c"
    assert read(text, in_thinking=True) == [
        reasoning("a"), content(f"{SECTION}xb{SECTION}y"), reasoning("c"),
    ]  # fmt: skip


def test_a_wrong_call_beside_a_right_one_is_content() -> None:
    wrong = call("functions.delete_all:0", '{"x": 1}')
    right = call("functions.get_weather:0", WEATHER)
    assert read(section(wrong, right)) == [content(wrong), BEIJING]
    assert read(section(right, wrong)) == [BEIJING, content(wrong)]
    assert read(wrong + right) == [content(wrong), BEIJING]
    assert read(wrong + "and so on") == [content(wrong + "and so on")]
    closed_by_next = f"{SECTION}{CALL}functions.get_weather:0{WEATHER}{call('functions.add:1')}"
    assert [one[2:] for one in read(closed_by_next)] == [("get_weather", WEATHER), ("add", "{}")]


def test_without_tools_there_are_neither_calls_nor_marks() -> None:
    text = "Well. " + section(call("functions.get_weather:0", WEATHER)) + "Bye."
    for more in ({"tools": ()}, {}):
        assert read(text, (), **more) == [content("Well. Bye.")]
        assert read(f"a{SECTION}b{END_CALL}c", (), **more) == [content("abc")]
        assert read(f"a{CALL}b", (), **more) == [content("ab")]


# --- properties

PARTS = [
    *MARKS, "<think>", "</think>", "<|im_user|>", "functions.get_weather:0", "functions.add:1",
    "nobody:2", WEATHER, '{"a": "', '"}', '"', "\\", " ", "\n", "text ", "世", "<|tool_call_",
    "<|tool_call_section_begin|>", "7", "{", "}",
]  # fmt: skip
WRITTEN = st.lists(st.sampled_from(PARTS), max_size=14)
TEXT_ONLY = st.lists(st.sampled_from(["text ", "世", "x", " ", "\n"]), max_size=6)


@settings(max_examples=400, deadline=None)
@given(WRITTEN, st.booleans(), st.booleans())
@example([CALL, "functions.add:1", ARGUMENTS, '{"a": "', CALL, '"', "\\", END_CALL], False, True)
def test_any_split_of_the_stream_reads_the_same(
    parts: list[str], in_thinking: bool, with_tools: bool
) -> None:
    text = "".join(parts)
    tools = TOOLS if with_tools else ()
    how = {"in_thinking": in_thinking, "tools": tools}
    whole = read_ids(kimi().encode(text), tools, **how)
    ids = []
    for part in parts:  # the same text in the smallest pieces
        mark = kimi().special_id(part)
        ids += bytes_of(part) if mark is None else [mark]
    assert joined(read_ids(ids, tools, **how)) == joined(whole)


@settings(max_examples=400, deadline=None)
@given(WRITTEN, TEXT_ONLY, st.booleans())
def test_nothing_that_a_model_writes_fails_or_loses_what_was_said_before(
    parts: list[str], said: list[str], in_thinking: bool
) -> None:
    before = "".join(said)
    got = read(before + "".join(parts), in_thinking=in_thinking)
    first = "reasoning" if in_thinking else "content"
    if before.strip():
        assert got[0][0] == first
        assert got[0][1].startswith(before.rstrip())
    heads = [one[1] for one in got if one[0] == "call"]
    assert len(set(heads)) == len(heads)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["get_weather", "add", "read-file", "看天气"]),
            st.dictionaries(st.text(max_size=5), st.text(max_size=12) | st.integers(), max_size=3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.text(alphabet="ab \n世<|", max_size=8),
)
def test_whatever_is_written_rightly_is_read_back(calls: Any, before: str) -> None:
    texts = [json.dumps(arguments, ensure_ascii=False) for _, arguments in calls]
    ids = kimi().encode(before, special=False)
    for number, ((name, _), text) in enumerate(zip(calls, texts, strict=True)):
        ids += kimi().encode(CALL if number else SECTION + CALL)
        ids += kimi().encode(f"functions.{name}:{number}", special=False)
        ids += kimi().encode(ARGUMENTS) + kimi().encode(text, special=False)
        ids += kimi().encode(END_CALL)
    got = joined(read_ids([*ids, *kimi().encode(END_SECTION + "<|im_end|>")]))
    wanted = [
        ("call", f"functions.{name}:{number}", name, text)
        for number, ((name, _), text) in enumerate(zip(calls, texts, strict=True))
    ]
    assert got == ([content(before)] if before.strip() else []) + wanted


# --- the last resort


def test_a_fault_of_the_parser_ends_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of()
    written = kimi().encode(f"So {SECTION}{CALL}functions.nobody")
    shown = [piece for i in written for piece in reader.push(i)]
    monkeypatch.setattr(ReplyParser, "_in_id", None)
    rest = [piece for i in kimi().encode(f":0{ARGUMENTS}{{}} end") for piece in reader.push(i)]
    assert joined([*shown, *rest, *reader.flush()]) == [
        content(f"So {SECTION}{CALL}functions.nobody:0{{}} end")
    ]


@pytest.mark.parametrize(
    "body",
    [
        "1" * 30_000 + "x", "a" + " " * 30_000 + "b", "add```json\n{" + " " * 30_000 + "}",
        "<function=add>" + "<parameter=a>" * 3_000, "add" + "<arg_key>" * 3_000,
    ],
)  # fmt: skip
def test_ids_of_any_length_take_linear_time(body: str) -> None:
    ids = [*kimi().encode(SECTION + CALL), *bytes_of(body), *kimi().encode(END_CALL + END_SECTION)]
    with takes_less_than(2):  # 0.2 s; quadratic took 10 s and more
        read_ids(ids)


def test_arguments_of_any_length_take_linear_time() -> None:
    long = json.dumps({"city": 'x"{' * 20_000 + CALL})
    mark = {text: kimi().special_id(text) for text in MARKS}
    ids = [mark[CALL], *bytes_of("add"), mark[ARGUMENTS], *bytes_of(long), mark[END_CALL]]
    with takes_less_than(3):  # 0.5 s; quadratic would be minutes
        pieces = read_ids(ids)
    assert "".join(piece.text for piece in pieces) == long
