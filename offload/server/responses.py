"""POST /v1/responses, as OpenAI has it, but that nothing is kept between requests."""

from __future__ import annotations

from offload.server.ask import Ask, chat_start
from offload.server.limits import Body, check_counts
from offload.server.responses_body import chat_body
from offload.server.responses_reply import ResponseReply
from offload.server.sampling import read_flag, read_sampling, read_wishes


def read(body: Body, model: str) -> Ask:
    """FailureError, RequestError. model: its name, whatever the client calls it."""
    check_counts(body)
    chat = chat_body(body)
    return Ask(
        starts=[chat_start(chat["messages"], read_wishes(chat), read_sampling(chat))],
        reply=ResponseReply(model, body),
        is_stream=read_flag(body, "stream"),
        name="responses",
    )
