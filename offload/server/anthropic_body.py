"""Bodies of Anthropic's Messages API, in the shape of /v1/chat/completions.

Lenient where agents are inventive: tools that a server would have to run, block types and fields
that this version does not know never fail a request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from offload.errors import RequestError
from offload.server.json_kinds import as_json, check_kind

log = logging.getLogger(__name__)

# fields that mean nothing here, or something else in a chat body
_LEFT_OUT = frozenset(
    {
        "system",
        "stop_sequences",
        "stop",
        "output_config",
        "output_format",
        "thinking",
        "tools",
        "tool_choice",
        "n",
        "logprobs",
        "top_logprobs",
        "stream_options",
    }
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request as a chat body; RequestError says what cannot be read.

    Results of tools become turns of their own before the rest of their message, thinking becomes
    reasoning, whatever its signature.
    """
    chat = {key: value for key, value in body.items() if key not in _LEFT_OUT}
    chat["messages"] = _messages(body.get("system"), body.get("messages"))
    declared = _declared(body.get("tools"))
    chat["tools"] = [_tool(tool) for tool in declared]
    chat |= _tool_choice(body.get("tool_choice"), declared)
    chat["stop"] = body.get("stop_sequences")
    chat |= _thinking(body.get("thinking"))
    form = _format(body)
    return chat | ({} if form is None else {"response_format": form})


# --- messages -------------------------------------------------------------------------------------


def _messages(system: Any, messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"messages must be an array of some, not {as_json(messages)}")
    result = _system(system)
    for number, message in enumerate(messages, 1):
        try:
            result += _turns(check_kind("it", message, dict))
        except RequestError as exc:
            raise RequestError(f"message {number}: {exc}") from exc
    return result


def _system(system: Any) -> list[dict[str, Any]]:
    """At most one system message; blocks become its lines."""
    if system is None:
        return []
    if isinstance(system, str):
        text = system
    else:
        blocks = check_kind("system", system, list)
        text = _joined([_text(check_kind("a block of system", block, dict)) for block in blocks])
    return [{"role": "system", "content": text}] if text else []


def _turns(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    role, content = message.get("role"), message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise RequestError(f"content must be a string or a list of blocks, not {as_json(content)}")
    if role == "system":
        return _system(content)
    if role not in ("user", "assistant"):
        raise RequestError(f"role {as_json(role)} is none of user, assistant, system")
    if content is None or isinstance(content, str):
        return [{"role": role, "content": content or ""}]
    blocks = [check_kind("a block of the content", block, dict) for block in content]
    return [_said(blocks)] if role == "assistant" else _asked(blocks)


def _asked(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns out of a user's blocks."""
    results = [_result(block) for block in blocks if block.get("type") == "tool_result"]
    parts = [part for block in blocks if (part := _part(block)) is not None]
    if results and not parts:
        return results
    return [*results, {"role": "user", "content": parts}]


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    """One tool turn. Its text says so if the tool failed."""
    content = block.get("content")
    if content is None or isinstance(content, str):
        parts = [{"type": "text", "text": content or ""}]
    else:
        inner = check_kind("the content of a tool_result", content, list)
        parts = [part for each in inner if (part := _part(check_kind("a block", each, dict)))]
    if block.get("is_error") is True and not _begins_with_error(parts):
        parts = [{"type": "text", "text": "Error: "}, *parts]
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": parts}


def _begins_with_error(parts: list[dict[str, Any]]) -> bool:
    return bool(parts) and str(parts[0].get("text", "")).lstrip().lower().startswith("error")


def _part(block: Mapping[str, Any]) -> dict[str, Any] | None:
    """A part of OpenAI's shape; None for what is no text for the model."""
    kind = block.get("type", "text")
    if kind == "text":
        return {"type": "text", "text": _text(block)}
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _address(block.get("source"))}}
    if kind == "document":
        return {"type": "text", "text": _document(block)}
    if kind == "search_result":
        head = [block.get("title"), block.get("source")]
        return {"type": "text", "text": _joined([*head, _texts(block.get("content"))])}
    return None


def _address(source: Any) -> str:
    """Where an image is: its own bytes, an address, or nothing that could be read."""
    if not isinstance(source, Mapping):
        return ""
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    return str(source.get("url", ""))


def _document(block: Mapping[str, Any]) -> str:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, Mapping) else None
    if isinstance(source, Mapping) and kind == "text":
        text = str(source.get("data", ""))
    elif isinstance(source, Mapping) and kind == "content":
        text = _texts(source.get("content"))
    else:
        text = "[document: this server reads only plain text]"
    return _joined([block.get("title"), block.get("context"), text])


def _texts(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_text(block) for block in content if isinstance(block, Mapping))
    return content if isinstance(content, str) else ""


def _joined(texts: list[Any]) -> str:
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _text(block: Mapping[str, Any]) -> str:
    text = block.get("text")
    return "" if text is None else check_kind("the text of a block", text, str)


def _said(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's turn; blocks that it cannot have written itself are left out."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(_text(block) for block in blocks if block.get("type", "text") == "text"),
    }
    thoughts = [block.get("thinking") for block in blocks if block.get("type") == "thinking"]
    reasoning = "".join(text for text in thoughts if isinstance(text, str))
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    function = {"name": block.get("name"), "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


# --- what else is asked for -----------------------------------------------------------------------


def _declared(tools: Any) -> list[dict[str, Any]]:
    if tools is None:
        return []
    return [check_kind("a tool", tool, dict) for tool in check_kind("tools", tools, list)]


def _is_ours(tool: Mapping[str, Any]) -> bool:
    """Whether the client describes it and runs it itself."""
    return tool.get("type") in (None, "custom", "function")


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if not _is_ours(tool):
        return {"type": str(tool["type"])}  # is left out, and that is told
    if isinstance(tool.get("function"), Mapping):  # OpenAI's shape, sent by mistake
        return {"type": "function", "function": tool["function"]}
    given = {key: tool[key] for key in ("name", "description", "strict") if key in tool}
    if not isinstance(given.get("name"), str):
        raise RequestError(f"a tool needs a name, and {as_json(tool)} has none")
    return {"type": "function", "function": {**given, "parameters": tool.get("input_schema") or {}}}


def _tool_choice(choice: Any, declared: list[dict[str, Any]]) -> dict[str, Any]:
    """A choice of tools that were all left out is left out, too."""
    if choice is None:
        return {}
    kind, name = check_kind("tool_choice", choice, dict).get("type"), choice.get("name")
    chosen = [tool for tool in declared if kind != "tool" or tool.get("name") == name]
    one_call = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if kind not in (*_CHOICES, "tool"):
        kinds = ", ".join((*_CHOICES, "tool"))
        raise RequestError(f"tool_choice type {as_json(kind)} is none of {kinds}")
    if kind in ("tool", "any") and not chosen:
        raise RequestError(f"tool_choice wants {as_json(name or kind)}, but tools has no such tool")
    if kind in ("tool", "any") and not any(map(_is_ours, chosen)):
        log.info("tool_choice left out with its tools: %s", as_json(choice))
        return one_call
    if kind == "tool":
        return {"tool_choice": {"type": "function", "function": {"name": name}}, **one_call}
    return {"tool_choice": _CHOICES[kind], **one_call}


def _thinking(thinking: Any) -> dict[str, Any]:
    """As a chat body says it; "adaptive" is what the model does anyway."""
    if thinking is None or check_kind("thinking", thinking, dict).get("type") == "adaptive":
        return {}
    return {"thinking": thinking}


def _format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema that the answer must have, if any."""
    config = body.get("output_config")
    form = config.get("format") if isinstance(config, Mapping) else body.get("output_format")
    if form is None:
        return None
    if check_kind("the output format", form, dict).get("type") != "json_schema":
        raise RequestError(f"output format {as_json(form.get('type'))} is not json_schema")
    schema = {"name": "answer", "schema": form.get("schema"), "strict": True}
    return {"type": "json_schema", "json_schema": schema}
