"""What clients ask for that this server does not do: what an answer is to say of it.

Only what would make another answer is told. Where and for whom it is made (`service_tier`, `user`),
and what only makes it faster (`prediction`, `prompt_cache_key`), may be there and says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from offload.answer import Answer
from offload.arguments import quoted
from offload.engine import Engine, Progress
from offload.server.desk import Start
from offload.server.limits import Body

# forms of answers in the words of other servers
_FORMS = (
    "grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "structured_outputs",
)  # fmt: skip
_USUAL = (None, "none", "medium")  # efforts and lengths that nothing is lost of


def with_unmet(starts: Sequence[Start], body: Body) -> Sequence[Start]:
    """The same, with notes for what of the body they do not heed."""
    notes = tuple(unmet(body))
    return [_noted(start, notes) for start in starts] if notes else starts


def unmet(body: Body) -> Iterator[str]:
    """A line each."""
    kinds = body.get("modalities")
    if body.get("audio") or isinstance(kinds, list) and any(kind != "text" for kind in kinds):
        yield "modalities: this server answers with text alone"
    if body.get("web_search_options") is not None:
        yield "web_search_options: this server does not search the web"
    if body.get("store") is True:
        yield "store: this server keeps no answers"
    if body.get("truncation") == "auto":
        yield "truncation: nothing is left out of a conversation; one that is too long is refused"
    for name, value in _degrees(body):
        if isinstance(value, str) and value not in _USUAL:
            yield f"{name}: {quoted(value)} makes no difference to this server's models"
    for name in _FORMS:
        if body.get(name):
            yield f"{name}: this server does not heed it; send response_format to the chat"
    if "prompt" in body and body.get("response_format"):
        yield "response_format: texts are continued in any form; send it to the chat"


def _degrees(body: Body) -> Iterator[tuple[str, Any]]:
    """How much is to be thought and said, by each protocol."""
    yield "reasoning_effort", body.get("reasoning_effort")
    yield "verbosity", body.get("verbosity")
    for name, inner in (
        ("reasoning", "effort"),
        ("output_config", "effort"),
        ("text", "verbosity"),
    ):
        value = body.get(name)
        if isinstance(value, dict):
            yield f"{name}.{inner}", value.get(inner)


def _noted(start: Start, notes: tuple[str, ...]) -> Start:
    def noted(engine: Engine, progress: Progress) -> Answer:
        answer = start(engine, progress)
        answer.sequence.notes += notes
        return answer

    return noted
