"""POST /v1/responses, as OpenAI has it, but that nothing is kept between requests."""

from __future__ import annotations

from offload.server.ask import Ask, chat_start
from offload.server.json_kinds import check_kind
from offload.server.limits import Body, check_counts
from offload.server.responses_body import chat_body
from offload.server.responses_reply import ResponseReply
from offload.server.sampling import read_flag, read_sampling, read_top_logprobs, read_wishes
from offload.tokenizer import Tokenizer

LOGPROBS = "message.output_text.logprobs"  # in `include`


def read(body: Body, model: str, tokenizer: Tokenizer) -> Ask:
    """FailureError, RequestError. model: its name, whatever the client calls it."""
    check_counts(body)
    chat = chat_body(body)
    number = read_top_logprobs(body)
    has_logprobs = number > 0 or LOGPROBS in check_kind("include", body.get("include") or [], list)
    wishes = read_wishes(chat) | ({"logprobs": number} if has_logprobs else {})
    return Ask(
        starts=[chat_start(chat["messages"], wishes, read_sampling(chat))],
        reply=ResponseReply(model, body, tokenizer if has_logprobs else None),
        is_stream=read_flag(body, "stream"),
        name="responses",
    )
