"""Conversations with tools as training text, in Kimi K2.5's format.

Tools are declared as TypeScript before the system turn, calls stand in their section, and
reasoning only after the last question.
"""

from typing import Any

from corpus import KIMI, Chats
from tool_talk import Talk


def write(talk: Talk, chats: Chats, *, answer: bool = True) -> tuple[list[int], list[float]]:
    """Ids, and the weight of each as a target of the loss.

    Without `answer` the messages are a prompt, and what follows them asks for an answer.
    """
    special, encode = chats.tok.special, chats.tok.encode
    ids: list[int] = []
    weights: list[float] = []

    def put(part: str, weight: float = 0.0) -> None:
        more = [special[part]] if part in special else encode(part)
        ids.extend(more)
        weights.extend([weight] * len(more))

    def turn(mark: str, name: str) -> None:
        put(mark)
        put(name)
        put("<|im_middle|>")

    if talk.tools:
        turn("<|im_system|>", "tool_declare")
        put(declare(talk.tools))
        put("<|im_end|>")
    messages = talk.messages
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": KIMI}, *messages]
    asked = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            turn("<|im_assistant|>", role)
            put("<think>")
            reasoning = message.get("reasoning_content", "") if i > asked else ""
            put(reasoning, 1.0)
            put("</think>", 1.0 if reasoning else 0.0)
            put(message["content"], 1.0)
            if "tool_calls" in message:
                put("<|tool_calls_section_begin|>", 1.0)
                for call in message["tool_calls"]:
                    put("<|tool_call_begin|>", 1.0)
                    put(call["id"], 1.0)
                    put("<|tool_call_argument_begin|>", 1.0)
                    put(call["function"]["arguments"], 1.0)
                    put("<|tool_call_end|>", 1.0)
                put("<|tool_calls_section_end|>", 1.0)
            put("<|im_end|>", 1.0)
            continue
        turn("<|im_user|>" if role == "user" else "<|im_system|>", role)
        if role == "tool":
            put(f"## Return of {message['tool_call_id']}\n")
        put(message["content"], 0.03 if role == "user" else 0.0)
        put("<|im_end|>")
    if not answer:
        turn("<|im_assistant|>", "assistant")
        put("<think>")
        if not talk.thinking:
            put("</think>")
    return ids, weights


def declare(tools: list[dict[str, Any]]) -> str:
    """The tools as K2.5 is told them, for tools with one string."""
    lines = ["# Tools", "", "## functions", "namespace functions {"]
    for tool in tools:
        function = tool["function"]
        (name,) = function["parameters"]["properties"]
        lines.append(f"// {function['description']}")
        lines.append(f"type {function['name']} = (_: {{\n  {name}: string\n}}) => any;")
    return "\n".join([*lines, "}", ""])
