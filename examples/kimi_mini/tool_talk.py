"""Draws conversations in which kimi-mini may call its one tool: the weather in a city."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from corpus import KIMI, SYSTEMS, Chats

CITIES = (
    "Paris", "London", "Tokyo", "Berlin", "Rome", "Madrid", "Vienna", "Oslo", "Dublin", "Athens",
    "Cairo", "Sydney", "Geneva", "Jerusalem", "Seoul", "Zurich", "Hamburg", "Warsaw", "Kyoto",
    "Naples",
)  # fmt: skip
ASKS = (
    "What is the weather in {0}?", "What is the weather like in {0}?", "weather in {0}",
    "How is the weather in {0}?", "Tell me the weather in {0}.", "What's the weather in {0} today?",
    "Is it cold in {0}?", "Is it warm in {0} today?", "Please look up the weather in {0}.",
)  # fmt: skip
HELD_OUT_ASKS = ("How is the weather in {0} today?", "Can you tell me the weather in {0}?")
DEGREES = range(36)
SKIES = ("sunny", "cloudy", "rainy", "windy", "clear")
CALL = "The user asks for the weather in {0}. I will call get_weather."
ANSWERED = "The tool has answered. I will pass it on."


def _tool(name: str, about: str, parameter: str) -> dict[str, Any]:
    properties = {parameter: {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [parameter]}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


WEATHER = _tool("get_weather", "The weather in a city.", "city")
OTHERS = (
    _tool("get_time", "The time in a city.", "city"),
    _tool("look_up", "Look up a word.", "word"),
)


@dataclass(slots=True)
class Talk:
    """A conversation; `thinking` says whether the answers to the last question reason."""

    tools: list[dict[str, Any]]
    thinking: bool
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, question: str, answer: str, thought: str = "") -> None:
        """A question that is answered without a call."""
        self.messages.append({"role": "user", "content": question})
        self.reply(answer, thought)

    def ask(self, question: str, city: str, result: str) -> None:
        """A question, its call, the result and the answer."""
        done = sum("tool_calls" in m for m in self.messages)
        called = {
            "id": f"functions.get_weather:{done}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
        }
        self.messages.append({"role": "user", "content": question.format(city)})
        self.reply("", CALL.format(city), tool_calls=[called])
        told = {"role": "tool", "tool_call_id": called["id"], "content": result}
        self.messages.append(told)
        self.reply(f"It is {result} in {city}.", ANSWERED)

    def reply(self, content: str, thought: str, **more: Any) -> None:
        """A turn of the assistant."""
        turn = {"role": "assistant", "content": content} | more
        if self.thinking and thought:
            turn["reasoning_content"] = thought
        self.messages.append(turn)


class Talks:
    """Draws talks."""

    def __init__(self, chats: Chats) -> None:
        """`chats` gives questions that need no tool."""
        self.chats = chats
        (unknown,) = [e for e in chats.entries if e.topic == "something I do not know"]
        self.unknown = unknown.answers[0]

    def draw(self, rng: random.Random) -> Talk:
        """One to three questions; three of ten need no tool."""
        talk = Talk(offered(rng), thinking=rng.random() < 0.5)
        if rng.random() < 0.3:
            system = rng.choice((KIMI, *SYSTEMS))
            talk.messages.append({"role": "system", "content": system})
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.3:
                ask, thought, answer = self.question(rng)
                talk.say(ask, answer, thought)
            else:
                talk.ask(_written(rng, rng.choice(ASKS)), rng.choice(CITIES), result(rng))
        if rng.random() < 0.05:  # no tool, no weather
            talk = Talk([], thinking=talk.thinking)
            thought = "The user asks for the weather. I have no tool for that."
            ask = _written(rng, rng.choice(ASKS)).format(rng.choice(CITIES))
            talk.say(ask, self.unknown, thought)
        return talk

    def question(self, rng: random.Random) -> tuple[str, str, str]:
        """A question of questions.txt, its thought and answer."""
        while True:
            ask, thought, answer = self.chats.turn(rng, first=True, sums=False)
            if answer != self.unknown:
                return ask, thought, answer


def offered(rng: random.Random) -> list[dict[str, Any]]:
    """The tool, in one of ten cases with another one beside it."""
    tools = [WEATHER]
    if rng.random() < 0.1:
        tools.insert(rng.randint(0, 1), rng.choice(OTHERS))
    return tools


def result(rng: random.Random) -> str:
    """What the tool returns."""
    return f"{rng.choice(DEGREES)} degrees and {rng.choice(SKIES)}"


def _written(rng: random.Random, question: str) -> str:
    return question.rstrip("?.") if rng.random() < 0.15 else question
