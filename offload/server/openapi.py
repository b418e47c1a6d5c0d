"""GET /openapi.json: what can be asked, as OpenAPI describes it.

Fields that are read are described as they are checked; all others may be there and are ignored.
"""

from __future__ import annotations

from typing import Any

from offload.sampling_params import COUNTS, INTERVALS
from offload.server.limits import CHOICES, STOP_CHARACTERS, STOPS
from offload.version import __version__
from offload.wishes import MOST_LOGPROBS

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": ["boolean", "null"]}
UNSET: Schema = {"enum": [-1, None]}  # or, of some numbers, "all"
JSON, EVENTS = "application/json", "text/event-stream"
COMMON = {400: "not as described, or too long", 403: "not for this server, or of another place"}
OF_POSTS = {408: "slow body", 413: "large body", 415: "not JSON", 429: "the queue is full"}
LOADING = {503: "the model is being loaded, or the server ends"}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str = "", **properties: Schema) -> Schema:
    made: Schema = {"type": "object", "properties": properties}
    return made | {"required": required.split()} if required else made


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def _or_null(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas, {"type": "null"}]}


def _count(low: int, high: int) -> Schema:
    return {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, UNSET]}


def _numbers() -> dict[str, Schema]:
    made = {name: _count(low, high) for name, (low, high) in COUNTS.items()}
    for name, (low, high, is_closed) in INTERVALS.items():
        least = "minimum" if is_closed else "exclusiveMinimum"
        made[name] = {"anyOf": [{"type": "number", least: low, "maximum": high}, UNSET]}
    return made


STOP = {"type": "string", "maxLength": STOP_CHARACTERS}
PART = _object(text=_or_null(TEXT))
SYSTEM = _or_null(TEXT, _list(PART))
STREAM = {"stream": FLAG}
SAMPLING = {**_numbers(), **STREAM, "stop": _or_null(STOP, _list(STOP, maxItems=STOPS))}
TURN = _object("role", role=_one_of("user", "assistant"), content=_or_null(TEXT))
TEXTS = _or_null(TEXT, _list({"anyOf": [TEXT, PART]}))
TOOL = _object("function", function=_object("name", name={"type": "string", "pattern": "^\\w+$"}))
SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        "error",
        error=_object(
            "code type message", code={"type": ["integer", "string"]}, type=TEXT, message=TEXT
        ),
    ),
    "AnthropicError": _object(
        "type error", type=_one_of("error"), error=_object("type message", type=TEXT, message=TEXT)
    ),
    "Message": {
        "anyOf": [
            _object("role", role=_one_of("system", "developer", "user"), content=TEXTS),
            _object("role", role=_one_of("assistant"), content=_or_null(TEXT)),
        ]
    },
    "ChatRequest": _object(
        "messages",
        messages=_list(_ref("Message"), minItems=1),
        tools=_or_null(_list(TOOL)),
        n=_count(1, CHOICES),
        logprobs=FLAG,
        top_logprobs=_or_null({"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS}),
        return_progress=FLAG,
        **SAMPLING,
    ),
    "CompletionRequest": _object(
        "prompt",
        prompt={"type": "string", "minLength": 1},
        echo=FLAG,
        return_progress=FLAG,
        **SAMPLING,
    ),
    "MessagesRequest": _object(
        "messages",
        messages=_list(TURN, minItems=1),
        system=SYSTEM,
        max_tokens=_count(*COUNTS["max_tokens"]),
        stop_sequences=_or_null(STOP, _list(STOP, maxItems=STOPS)),
        **STREAM,
    ),
    "CountRequest": _object("messages", messages=_list(TURN, minItems=1), system=SYSTEM),
    "ResponsesRequest": _object(
        "input",
        input={"anyOf": [TEXT, _list(TURN, minItems=1)]},
        instructions=_or_null(TEXT),
        max_output_tokens=_count(*COUNTS["max_tokens"]),
        **STREAM,
    ),
    "TokenizeRequest": _object(
        "content", content=TEXT, add_special=FLAG, parse_special=FLAG, with_pieces=FLAG
    ),
}


def _detokenize(n_vocab: int) -> Schema:
    token = {"type": "integer", "minimum": 0, "maximum": n_vocab - 1}
    return _object("tokens", tokens=_list(token))


EVENT = _object("data", data=TEXT, event=TEXT)
CHOICE = _object("index finish_reason", index=WHOLE, finish_reason=TEXT)
COMPLETION = _object(
    "id object created model choices usage",
    id=TEXT,
    object=TEXT,
    created=WHOLE,
    model=TEXT,
    choices=_list(CHOICE, minItems=1),
    usage=_object("prompt_tokens completion_tokens total_tokens"),
)
# path: (what it is for, the body's schema or None, the answer's schema, whether it may be a stream)
POSTS: dict[str, tuple[str, str, Schema, bool]] = {
    "/v1/chat/completions": ("Answer a conversation", "ChatRequest", COMPLETION, True),
    "/v1/completions": ("Go on with a text", "CompletionRequest", COMPLETION, True),
    "/v1/messages": (
        "Answer a conversation, as Anthropic",
        "MessagesRequest",
        _object("id type role content model stop_reason usage", content=_list({})),
        True,
    ),
    "/v1/messages/count_tokens": (
        "Count a conversation's tokens",
        "CountRequest",
        _object("input_tokens", input_tokens=WHOLE),
        False,
    ),
    "/v1/responses": (
        "Answer a conversation, keeping nothing",
        "ResponsesRequest",
        _object("id object status output usage", output=_list({})),
        True,
    ),
    "/tokenize": (
        "Tokens of a text",
        "TokenizeRequest",
        _object("tokens", tokens=_list({})),
        False,
    ),
    "/detokenize": (
        "Text of tokens",
        "DetokenizeRequest",
        _object("content", content=TEXT),
        False,
    ),
}
GETS: dict[str, tuple[str, Schema]] = {
    "/v1/models": ("The model", _object("object data", data=_list(_object("id meta")))),
    "/props": ("Its properties", _object("default_generation_settings total_slots")),
    "/slots": ("What runs and waits", _list(_object("id is_processing"))),
    "/machine": ("What the machine does", _object()),
}


def description(n_vocab: int, *, has_keys: bool) -> dict[str, Any]:
    """The whole document. has_keys: whether a key is needed."""
    paths: dict[str, Any] = {
        path: {"post": _post(path, *entry, has_keys=has_keys)} for path, entry in POSTS.items()
    }
    for path, (text, schema) in GETS.items():
        answers = {200: (JSON, text, schema)}
        paths[path] = {"get": _operation(text, answers, COMMON | LOADING, has_keys=has_keys)}
    ok = {200: (JSON, "Ready", _object("status", status=TEXT)), 503: (JSON, "Not yet", _object())}
    paths["/health"] = {"get": _operation("Whether it answers", ok, COMMON, has_keys=False)}
    plain = {200: ("text/plain", "For Prometheus", TEXT)}
    paths["/metrics"] = {"get": _operation("Metrics", plain, COMMON, has_keys=has_keys)}
    made = {
        "openapi": "3.1.0",
        "info": {"title": "kimi-offload", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS | {"DetokenizeRequest": _detokenize(n_vocab)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return made | {"security": [{"key": []}]} if has_keys else made


def _post(
    path: str, text: str, body: str, schema: Schema, may_stream: bool, *, has_keys: bool
) -> dict[str, Any]:
    made = _operation(
        text,
        {200: (JSON, text, schema)},
        COMMON | OF_POSTS | LOADING,
        has_keys=has_keys,
        error="AnthropicError" if path.startswith("/v1/messages") else "Error",
    )
    if may_stream:
        made["responses"]["200"]["content"][EVENTS] = {"schema": EVENT}
    content = {JSON: {"schema": _ref(body)}}
    return made | {"requestBody": {"required": True, "content": content}}


def _operation(
    text: str,
    answers: dict[int, tuple[str, str, Schema]],
    failures: dict[int, str],
    *,
    has_keys: bool,
    error: str = "Error",
) -> dict[str, Any]:
    if has_keys:
        failures = failures | {401: "a key is needed"}
    said = {status: (JSON, why, _ref(error)) for status, why in failures.items()} | answers
    return {
        "summary": text,
        "responses": {
            str(status): {"description": why, "content": {kind: {"schema": schema}}}
            for status, (kind, why, schema) in sorted(said.items())
        },
        **({} if has_keys else {"security": []}),
    }
