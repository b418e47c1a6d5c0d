"""Draws conversations in which kimi-mini is offered tools and mostly calls one."""

import json
import random
from dataclasses import dataclass
from typing import Any

import tool_kinds as kinds
from corpus import KIMI, SYSTEMS, Chats
from tool_fill import Filler
from tool_kinds import Kind
from tool_text import Talk

CALL = "The user asks about {topic}. I will call {name}."
ANSWERED = "The tool has answered. I will pass it on."
FAILED = "The tool has failed. I will say so."
AND_THERE = ("And in {0}?", "and in {0}?", "And {0}?", "What about {0}?")
AGENT = ("You are a helpful assistant with tools.", "Use the tools when they help.")
TYPES = {"number": ("number", "number", "integer")}
UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}


@dataclass(slots=True)
class Tool:
    """A kind with one choice of names."""

    kind: Kind
    name: str
    function: dict[str, Any]  # the OpenAI declaration
    slots: list[str]  # names of the parameters, in the order of the kind's slots


class Talks:
    """Draws talks; with `held_out` from the lists and ways that training never sees."""

    def __init__(self, chats: Chats, *, held_out: bool = False) -> None:
        """`chats` gives the tokenizer, its words, and questions that need no tool."""
        self.chats = chats
        self.held_out = held_out
        self.fill = Filler(chats.tok, chats.entries, held_out=held_out)
        (unknown,) = [e for e in chats.entries if e.topic == "something I do not know"]
        self.unknown = unknown.answers[0]

    def draw(self, rng: random.Random) -> Talk:
        """A talk of one to three questions."""
        subjects = list(range(len(kinds.SUBJECTS)))
        offered = self._subjects(rng, rng.choice((0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3)))
        tools = [self._tool(rng, rng.choice(kinds.SUBJECTS[s])) for s in offered]
        talk = Talk([t.function for t in tools], thinking=rng.random() < 0.5)
        pick = rng.random()
        if pick > 0.55:
            system = rng.choice((KIMI, *SYSTEMS, *AGENT, *AGENT))
            talk.messages.append({"role": "system", "content": system})
        turns = rng.choice((1, 1, 1, 2, 2, 3))
        named = rng.random() < 0.3  # whether the client names its tool turns
        tool = None
        for turn in range(turns):
            thinks = talk.thinking and turn == turns - 1
            pick = rng.random()
            if tool and tool.kind in (kinds.WEATHER, kinds.TIME) and pick < 0.3:
                ask = rng.choice(AND_THERE)
                self.call(rng, talk, [(tool, ask)], thinks=thinks, named=named)
            elif tools and pick < 0.75:
                tool = rng.choice(tools)
                asked = self._asked(rng, tool, tools)
                self.call(rng, talk, asked, thinks=thinks, named=named)
            elif pick < 0.9:
                tool = None
                ask, thought, answer = self._question(rng)
                self._say(talk, ask, answer, thought if thinks else "")
            else:
                tool = None
                missing = rng.choice([s for s in subjects if s not in offered])
                self._refuse(rng, talk, missing, thinks=thinks)
        return talk

    def call(
        self,
        rng: random.Random,
        talk: Talk,
        asked: list[tuple[Tool, str]],
        *,
        thinks: bool,
        named: bool = False,
    ) -> None:
        """Add a question, its calls, their results and the answer.

        asked: the way of asking of each tool; the same tool twice is asked for by one way for
        two values.
        """
        twins = len(asked) == 2 and asked[0][0] is asked[1][0]
        values = [self.fill.values(rng, tool.kind) for tool, _ in asked]
        while twins and values[0] == values[1]:
            values[1] = self.fill.values(rng, asked[1][0].kind)
        if twins:
            question = asked[0][1].format(values[0][0], values[1][0])
        else:
            parts = [w.format(*v) for (tool, w), v in zip(asked, values, strict=True)]
            question = (" " if parts[0][-1] in ".?" else " and ").join(parts)
        topics, calls, results, answers = [], [], [], []
        failed = False
        for (tool, _), value in zip(asked, values, strict=True):
            arguments = dict(sorted(zip(tool.slots, map(_typed(tool), value), strict=True)))
            calls.append(
                {
                    "id": f"functions.{tool.name}:{talk.calls + len(calls)}",
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "arguments": json.dumps(arguments, ensure_ascii=False),
                    },
                }
            )
            topics.append(tool.kind.topic.format(*value))
            result, spoken = self.fill.result(rng, tool.kind, value)
            results.append(result)
            says = tool.kind.says.format(*value, result=spoken.removesuffix("."))
            if result.startswith("error: "):
                failed = True
                says = f"That did not work: {spoken}."
            elif tool.kind.says.endswith("{result}"):
                says = tool.kind.says.format(result=spoken)
            answers.append(says)
        names = f"{asked[0][0].name} twice" if twins else " and ".join(t.name for t, _ in asked)
        thought = CALL.format(topic=" and ".join(topics), name=names)
        call: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
        done: dict[str, Any] = {"role": "assistant", "content": " ".join(answers)}
        if thinks:
            call["reasoning_content"] = thought
            done["reasoning_content"] = FAILED if failed else ANSWERED
        talk.messages += [{"role": "user", "content": question}, call]
        for made, result in zip(calls, results, strict=True):
            turn = {"role": "tool", "tool_call_id": made["id"], "content": result}
            talk.messages.append(turn | ({"name": made["function"]["name"]} if named else {}))
        talk.messages.append(done)

    def one(self, rng: random.Random, *, thinking: bool) -> Talk:
        """A talk of one question that a tool answers, for judging."""
        subjects = self._subjects(rng, rng.randint(1, 3))
        tools = [self._tool(rng, rng.choice(kinds.SUBJECTS[s])) for s in subjects]
        talk = Talk([t.function for t in tools], thinking=thinking)
        asked = self._asked(rng, rng.choice(tools), tools)
        self.call(rng, talk, asked, thinks=thinking)
        return talk

    def none(self, rng: random.Random, question: str, answer: str, *, thinking: bool) -> Talk:
        """A talk of one question that needs no tool although some are offered."""
        subjects = self._subjects(rng, rng.randint(1, 3))
        tools = [self._tool(rng, rng.choice(kinds.SUBJECTS[s])) for s in subjects]
        talk = Talk([t.function for t in tools], thinking=thinking)
        self._say(talk, question, answer, "")
        return talk

    def _subjects(self, rng: random.Random, count: int) -> list[int]:
        """Different subjects, in random order."""
        chosen: list[int] = []
        while len(chosen) < count:
            (s,) = rng.choices(range(len(kinds.SUBJECTS)), kinds.WEIGHTS)
            if s not in chosen:
                chosen.append(s)
        return chosen

    def _asked(self, rng: random.Random, tool: Tool, tools: list[Tool]) -> list[tuple[Tool, str]]:
        """How `tool` is asked for: once, twice, or with another one."""
        pick = rng.random()
        if tool.kind.twins and pick < 0.25:
            return [(tool, rng.choice(tool.kind.twins))] * 2
        ways = tool.kind.held_out if self.held_out else tool.kind.asks
        asked = [(tool, rng.choice(ways))]
        if len(tools) > 1 and pick > 0.9:
            other = rng.choice([t for t in tools if t is not tool])
            ways = other.kind.held_out if self.held_out else other.kind.asks
            asked.append((other, rng.choice(ways)))
        return asked

    def _question(self, rng: random.Random) -> tuple[str, str, str]:
        """A question of questions.txt, its thought and answer, none that a tool might answer."""
        while True:
            ask, thought, answer = self.chats.turn(rng, first=True, sums=False)
            if answer != self.unknown:
                return ask, thought, answer

    def _refuse(self, rng: random.Random, talk: Talk, subject: int, *, thinks: bool) -> None:
        """Ask for a tool that is not offered; the answer is what it would be without any."""
        tool = self._tool(rng, rng.choice(kinds.SUBJECTS[subject]))
        value = self.fill.values(rng, tool.kind)
        question = rng.choice(tool.kind.asks).format(*value)
        topic = tool.kind.topic.format(*value)
        answer, thought = self.unknown, f"The user asks about {topic}. I have no tool for that."
        if tool.kind.calculates:
            answer = "I am too small to calculate. Please use a calculator."
        self._say(talk, question, answer, thought if thinks else "")

    def _say(self, talk: Talk, question: str, answer: str, thought: str) -> None:
        reply = {"role": "assistant", "content": answer}
        if thought:
            reply["reasoning_content"] = thought
        talk.messages += [{"role": "user", "content": question}, reply]

    def _tool(self, rng: random.Random, kind: Kind) -> Tool:
        """Choose names, descriptions and types."""
        properties: dict[str, Any] = {}
        names = []
        described = rng.random() < 0.7
        for slot in kind.slots:
            names.append(rng.choice(slot.names))
            properties[names[-1]] = {"type": rng.choice(TYPES.get(slot.filling, ("string",)))}
            if described:
                properties[names[-1]]["description"] = rng.choice(slot.about)
        required = list(names)
        if kind is kinds.WEATHER and rng.random() < 0.15:
            properties["unit"] = UNIT
        parameters = {"type": "object", "properties": properties, "required": required}
        name = rng.choice(kind.names)
        function = {"name": name, "parameters": parameters}
        if rng.random() < 0.9:
            function["description"] = rng.choice(kind.about)
        return Tool(kind, name, {"type": "function", "function": function}, names)


def _typed(tool: Tool) -> Any:
    """How a value of the question stands in the arguments."""
    return json.loads if tool.kind.calculates else str
