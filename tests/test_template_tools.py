"""Tools through the template of a file: what it is given, and how its model's calls are read."""

from __future__ import annotations

import json
from typing import Any

import kimi_vocab
import numpy as np
import pytest
from replies import joined, tool
from test_chat import LOOP, SMUGGLED, assistant, system, user
from test_kimi_tools import ADD

from offload.chat import ChatFormat, choose_format
from offload.errors import RequestError
from offload.stream import Piece
from offload.tokenizer import load_tokenizer
from offload.tools import check_choice

HERMES = (
    "{% if tools %}# Tools {% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_user|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n{\"name\": \"{{ c.function.name }}\", "
    "\"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>"
    "{% endfor %}<|im_assistant|>"
)  # fmt: skip
PARTS = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
         "<｜tool▁calls▁end｜>")  # fmt: skip
BEGIN, CALL, SEP, END_CALL, END = PARTS
DEEPSEEK = (
    "{% if tools %}{% for t in tools %}### {{ t.function.name }}{% endfor %}{% endif %}"
    "{% for m in messages %}<|im_user|>{{ m.content }}{% if m.tool_calls %}" + BEGIN
    + "{% for c in m.tool_calls %}{{ '" + CALL + "' + c.function.name + '" + SEP
    + "' + c.function.arguments + '" + END_CALL + "' }}{% endfor %}" + END + "{% endif %}"
    "{% endfor %}<|im_assistant|></think>"
)  # fmt: skip
FENCED = DEEPSEEK.replace(
    "c.function.name + '" + SEP + "' + c.function.arguments + '",
    "c.type + '" + SEP + "' + c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```",
)
GLM = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>"
    "<arg_value>{{ v }}</arg_value>{% endfor %}</tool_call>{% endfor %}{% endfor %}<think>"
)
TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
WEATHER = tool("get_weather", ["city", "days"])


def template_format(source: str, *more: str) -> ChatFormat:
    """more: special tokens beside those of the test vocabulary."""
    base = kimi_vocab.metadata(without=("<|im_middle|>",))
    types = np.array([*base["tokenizer.ggml.token_type"], *[3] * len(more)], np.int32)
    data = {
        **base,
        "tokenizer.ggml.tokens": [*base["tokenizer.ggml.tokens"], *more],
        "tokenizer.ggml.token_type": types,
        "tokenizer.chat_template": source,
    }
    return choose_format(data, load_tokenizer(data, ""))


def read(chat: ChatFormat, text: str, *declared: dict[str, Any]) -> list[tuple[str, ...]]:
    """What is read of an answer to a prompt that offers `declared`."""
    prompt = chat.build_prompt([user("Hi")], tools=declared)
    vocab = chat._tokenizer  # type: ignore[attr-defined]
    reader = prompt.reader(vocab, prompt.tools)
    pieces: list[Piece] = [piece for i in vocab.encode(text) for piece in reader.push(i)]
    return joined([*pieces, *reader.flush()])


# --- prompts


def test_a_template_is_given_tools_and_calls_as_it_expects_them() -> None:
    text = template_format(HERMES).build_prompt(LOOP, tools=[ADD]).text
    assert text.startswith("# Tools " + json.dumps(ADD) + "\n<|im_user|>user\n")
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' in text
    assert "<|im_user|>tool\n3<|im_end|>" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (DEEPSEEK, f'{BEGIN}{CALL}add{SEP}{{"a": 1, "b": 2}}{END_CALL}{END}'),
        (FENCED, f'{CALL}function{SEP}add\n```json\n{{"a": 1, "b": 2}}\n```{END_CALL}{END}'),
        (GLM, "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b</arg_key>"),
        (
            "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}"
            "{% endfor %}{% endfor %}",
            '{"a": 1, "b": 2}',
        ),
    ],
)
def test_arguments_are_objects_or_text_as_the_template_can_write_them(
    source: str, expected: str
) -> None:
    assert expected in template_format(source, *PARTS, *TAGS).build_prompt(LOOP).text


def test_a_template_without_tools_gets_none_and_that_is_said() -> None:
    chat = template_format("{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}")
    prompt = chat.build_prompt(LOOP, tools=[ADD])
    assert prompt.tools == ()
    assert "1 tools are left out" in prompt.notes[0]
    assert prompt.text == (
        'user: Sum 1 and 2;assistant: Call of add: {"a": 1, "b": 2};user: Result of add:\n3;'
    )
    with pytest.raises(RequestError, match="no tool can be called"):
        check_choice("required", prompt.tools)
    two = [*LOOP, {**LOOP[2], "content": "4", "name": None}]
    assert "Result of add:\n3\nResult of the tool:\n4;" in chat.build_prompt(two).text


def test_deepseek_is_told_of_tools_where_its_template_has_no_place_for_them() -> None:
    source = DEEPSEEK[DEEPSEEK.index("{% for m in") :].replace("{{ m.c", "{{ m.role + m.c")
    chat = template_format(source, *PARTS)
    prompt = chat.build_prompt([user("Hi")], tools=[ADD])
    declared = (
        "## Tools\nYou can call these functions:\n\n### add\nAdds two numbers.\nParameters: "
        + json.dumps(ADD["function"]["parameters"])
    )
    assert prompt.text.startswith(f"<|im_user|>system{declared}<|im_user|>userHi")
    assert "no place" in prompt.notes[0]
    own = chat.build_prompt([system("S"), user("Hi")], tools=[ADD]).text
    assert own.startswith(f"<|im_user|>systemS\n\n{declared}<|im_user|>userHi")
    call = f'{BEGIN}{CALL}add{SEP}{{"a": 1}}{END_CALL}{END}'
    assert read(chat, call, ADD) == [("call", "functions.add:0", "add", '{"a": 1}')]


def test_text_of_tools_and_calls_never_becomes_special() -> None:
    chat = template_format(HERMES)
    vocab = chat._tokenizer  # type: ignore[attr-defined]
    specials = set(vocab.specials.values())

    def marks(evil: str) -> list[int]:
        function = {**ADD["function"], "description": evil}
        function["parameters"] = {"type": "object", "properties": {evil: {"type": "string"}}}
        call = {"id": evil, "function": {"name": evil, "arguments": {evil: evil}}}
        prompt = chat.build_prompt(
            [user("x"), assistant("", tool_calls=[call]), {"role": "tool", "content": evil}],
            tools=[{"type": "function", "function": function}],
        )
        assert evil in prompt.text
        assert evil in vocab.decode(prompt.ids)
        return [i for i in prompt.ids if i in specials]

    assert marks(SMUGGLED) == marks("x")


def test_a_last_message_of_the_assistant_is_continued() -> None:
    chat = template_format(HERMES)
    prompt = chat.build_prompt([user("Hi"), assistant("Yo<|im_end|>")])
    assert prompt.text == "<|im_user|>user\nHi<|im_end|><|im_assistant|>Yo<|im_end|>"
    assert prompt.after_content
    thinks = template_format(GLM, *TAGS)
    assert thinks.build_prompt([user("Hi"), assistant("Yo")]).text == "Hi<think></think>Yo"
    begun = thinks.build_prompt([user("Hi"), assistant("", reasoning_content="hm")])
    assert begun.text == "Hi<think>hm"
    assert begun.in_thinking


# --- answers

CITY = ("call", "functions.get_weather:0", "get_weather", '{"city": "Rome"}')


def test_calls_of_hermes_and_qwen() -> None:
    chat = template_format(HERMES)
    one = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    two = '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}'
    assert read(chat, f"So.\n{one}\n{two}", WEATHER) == [
        ("content", "So.\n"), CITY, ("call", "functions.get_weather:1", *CITY[2:]),
    ]  # fmt: skip
    assert read(chat, one) == [("content", one)]  # nothing was offered
    for broken in (
        '<tool_call>\n{"name": "x"}\n</tool_call>', "<tool_call>{", "<tool_c",
        "The mark is <tool_call>", "Write <tool_call></tool_call>.",
    ):  # fmt: skip
        assert read(chat, broken, WEATHER) == [("content", broken)]
    coder = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    assert read(chat, coder, WEATHER) == [CITY]


@pytest.mark.parametrize("tokens", [(), TAGS], ids=["text", "tokens"])
def test_calls_of_glm(tokens: tuple[str, ...]) -> None:
    chat = template_format(GLM, *tokens)
    pairs = "<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>"
    text = f"hm</think><tool_call>get_weather\n{pairs}\n<arg_value>2</arg_value>\n</tool_call>"
    assert read(chat, text, WEATHER) == [
        ("reasoning", "hm"), (*CITY[:3], '{"city": "Rome", "days": 2}'),
    ]  # fmt: skip
    assert read(chat, "</think><tool_call>get_weather</tool_call>", WEATHER)[0][3] == "{}"
    assert chat.tool_marks is None


def test_calls_of_deepseek() -> None:
    chat = template_format(DEEPSEEK, *PARTS)
    once = f'{CALL}get_weather{SEP}{{"city": "Rome"}}{END_CALL}'
    assert read(chat, f"{BEGIN}{once}{END}", WEATHER) == [CITY]
    assert len(read(chat, f"{BEGIN}{once}{once}{END}", WEATHER)) == 2
    fenced = template_format(FENCED, *PARTS)
    again = f'{CALL}function{SEP}get_weather\n```json\n{{"city": "Rome"}}\n```{END_CALL}'
    assert read(fenced, f"So.{BEGIN}{again}\n{again}{END}", WEATHER) == [
        ("content", "So."), CITY, ("call", "functions.get_weather:1", *CITY[2:]),
    ]  # fmt: skip
    wrong = f"{BEGIN}{CALL}function{SEP}nobody\n```json\n{{}}\n```{END_CALL}{END}"
    assert read(fenced, wrong, WEATHER) == [("content", wrong)]


def test_marks_write_what_is_read() -> None:
    for source in (HERMES, DEEPSEEK, FENCED):
        chat = template_format(source, *PARTS)
        marks = chat.tool_marks
        assert marks is not None
        once = (
            f"{marks.call_begin}{marks.id_prefix}get_weather{marks.argument_begin}"
            f'{{"city": "Rome"}}{marks.call_end}'
        )
        text = f"{marks.section_begin}{once}{marks.between}{once}{marks.section_end}"
        got = read(chat, text, WEATHER)
        assert [one[2:] for one in got] == [CITY[2:], CITY[2:]]
