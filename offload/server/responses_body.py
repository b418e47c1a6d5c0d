"""Bodies of OpenAI's Responses API, in the shape of /v1/chat/completions.

The server keeps nothing between requests: what refers to something kept is refused by name. Items
and tools that only OpenAI's own servers can run are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from offload.errors import RequestError, shown
from offload.server.json_kinds import as_json, check_kind

log = logging.getLogger(__name__)

# fields that mean nothing here, or something else in a chat body
_LEFT_OUT = frozenset(
    {
        "input",
        "instructions",
        "text",
        "tools",
        "tool_choice",
        "max_output_tokens",
        "n",
        "logprobs",
        "top_logprobs",
        "stream_options",
        "response_format",
    }
)
_KEPT_ELSEWHERE = ("previous_response_id", "conversation", "prompt")
_OF_OTHERS = ("_call", "_output", "_response", "_tools")  # ends of items' types
_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request as a chat body; RequestError names what cannot be served."""
    for field in _KEPT_ELSEWHERE:
        if body.get(field) is not None:
            raise RequestError(
                f"{field} refers to something that a server has kept, and this one keeps nothing; "
                "send the whole conversation as input"
            )
    if body.get("background"):
        raise RequestError("background is not possible here; leave it out, or ask for a stream")
    chat = {key: value for key, value in body.items() if key not in _LEFT_OUT}
    chat["messages"] = _messages(body.get("instructions"), body.get("input"))
    chat |= _tools(body.get("tools"), body.get("tool_choice"))
    chat["max_completion_tokens"] = body.get("max_output_tokens")
    form = check_kind("text", body.get("text") or {}, dict).get("format")
    if form is not None:
        chat["response_format"] = _format(check_kind("text.format", form, dict))
    return chat


def _format(form: dict[str, Any]) -> dict[str, Any]:
    """Of chat's shape, which has the schema one level deeper."""
    if form.get("type") != "json_schema":
        return form
    schema = {key: value for key, value in form.items() if key != "type"}
    return {"type": "json_schema", "json_schema": schema}


# --- the conversation -----------------------------------------------------------------------------


def _messages(instructions: Any, given: Any) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    if instructions is not None:
        text = check_kind("instructions", instructions, str)
        result += [{"role": "system", "content": text}] if text else []
    if isinstance(given, str):
        return [*result, {"role": "user", "content": given}]
    turns = _Turns(result)
    for number, item in enumerate(check_kind("input", given, list), 1):
        try:
            turns.add(check_kind("it", item, dict))
        except RequestError as exc:
            raise RequestError(f"input item {number}: {exc}") from exc
    return result


class _Turns:
    """Messages out of items: reasoning, text and calls that follow each other are one turn."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._messages = messages

    def add(self, item: Mapping[str, Any]) -> None:
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            text = _text(item.get("content")) or _text(item.get("summary"))
            if text:  # what is only encrypted says nothing to this model
                self._fresh("reasoning_content", "content", "tool_calls")["reasoning_content"] = (
                    text
                )
        elif kind in ("function_call", "custom_tool_call"):
            self._assistant().setdefault("tool_calls", []).append(_call(item))
        elif kind in ("function_call_output", "custom_tool_call_output"):
            content = _content(item.get("output"))
            self._messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
            )
        elif isinstance(kind, str) and (kind.startswith("mcp_") or kind.endswith(_OF_OTHERS)):
            log.info("input item left out, a tool of other servers: %s", as_json(kind))
        else:
            raise RequestError(
                f"type {as_json(kind)} cannot be served; send messages, reasoning, function calls "
                "and their outputs"
            )

    def _message(self, item: Mapping[str, Any]) -> None:
        role, content = item.get("role"), _content(item.get("content"))
        if role != "assistant":
            self._messages.append({"role": role, "content": content})
            return
        self._fresh("content", "tool_calls")["content"] = content

    def _assistant(self) -> dict[str, Any]:
        """The assistant's turn that is being told."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": ""})
        return self._messages[-1]

    def _fresh(self, *fields: str) -> dict[str, Any]:
        """The same, or a new one where one of these fields is taken."""
        message = self._assistant()
        if any(message.get(field) for field in fields):
            message = {"role": "assistant", "content": ""}
            self._messages.append(message)
        return message


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    arguments = item.get("arguments")
    if item.get("type") == "custom_tool_call":
        arguments = {"input": item.get("input")}
    function = {"name": item.get("name"), "arguments": arguments}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _content(content: Any) -> str | list[dict[str, Any]]:
    """A text, or parts of chat's shape."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = check_kind("content", content, list)
    return [_part(check_kind("a part of the content", part, dict)) for part in parts]


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type", "text")
    if kind in _TEXTS:
        text = part.get("refusal" if kind == "refusal" else "text")
        text = "" if text is None else check_kind("the text of a part", text, str)
        return {"type": "text", "text": text}
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url") or ""}}
    return {"type": "text", "text": f"[{shown(kind, 40)}: this server reads only plain text]"}


def _text(content: Any) -> str:
    """What a reasoning item says in clear."""
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "".join(text for text in texts if isinstance(text, str))


# --- tools ----------------------------------------------------------------------------------------


def _tools(tools: Any, choice: Any) -> dict[str, Any]:
    """Tools, and which of them the model is to call."""
    declared = [check_kind("a tool", tool, dict) for tool in check_kind("tools", tools or [], list)]
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        listed = check_kind("tool_choice.tools", choice.get("tools"), list)
        names = [_name(tool) for tool in listed if isinstance(tool, Mapping)]
        declared = [tool for tool in declared if _name(tool) in names]
        choice = choice.get("mode", "auto")
    result: dict[str, Any] = {"tools": [_tool(tool) for tool in declared]}
    is_moot = choice == "required" and declared and not any(map(_is_function, declared))
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        result["tool_choice"] = {"type": "function", "function": {"name": _name(choice)}}
    elif isinstance(choice, Mapping) or is_moot:
        log.info("tool_choice left out with its tools: %s", as_json(choice))
    elif choice is not None:
        result["tool_choice"] = choice
    return result


def _is_function(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") in (None, "function")


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if not _is_function(tool):
        return {"type": str(tool["type"])}  # is left out, and that is told
    function = tool.get("function")
    if not isinstance(function, Mapping):
        keys = ("name", "description", "parameters", "strict")
        function = {key: tool[key] for key in keys if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _name(tool: Mapping[str, Any]) -> Any:
    """Of a function, in this API's flat shape or in chat's."""
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else tool.get("name")
