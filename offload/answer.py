"""Answer: what `Engine.generate` and `chat` return. Completion: a whole one of `Engine.batch`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from offload.errors import OffloadError
from offload.messages import Message, ToolCall
from offload.sequence import Sequence
from offload.speech import Request, Token
from offload.stats import Channel, RunStats
from offload.steps import Steps
from offload.stream import CallHead


class Answer(Iterator[Token]):
    """An iterator over tokens. It begins with the first one asked for; it ends as generators do.

    `close()`, or letting go of it, ends it early and frees what it holds. stats: what it cost.
    Several may be open at once, in one thread or in many, and one may be handed on to another
    thread. Every answer is the one that it would be alone, bit for bit. notes: what was wished for
    and is not met in full, for people.
    """

    def __init__(self, steps: Steps, sequence: Sequence) -> None:
        self.stats: RunStats = sequence.stats
        self.sequence = sequence
        self._steps = steps
        self._rest: deque[Token] = deque()  # of the latest id

    def __next__(self) -> Token:
        if self._rest:
            return self._rest.popleft()
        if self.sequence.is_left:
            raise StopIteration
        try:
            if not self.sequence.is_joined:
                self.begin()
            tokens = self._steps.tokens(self.sequence)
        except BaseException:
            self.close()
            raise
        if not tokens:
            self.close()
            raise StopIteration
        if len(tokens) > 1:
            self._rest.extend(tokens[1:])
        return tokens[0]

    def begin(self) -> None:
        """Take part in steps from now on."""
        self.sequence.begin()
        self._steps.add(self.sequence)

    @property
    def notes(self) -> tuple[str, ...]:
        """They may grow until it has ended."""
        return self.sequence.notes

    @property
    def has_room(self) -> bool:
        """Whether the KV cache has room for it, beside those that have begun."""
        return self._steps.has_room(self.sequence)

    def has_room_with(self, others: Iterable[Answer]) -> bool:
        """Whether the KV cache would have room for it and these, were they alone."""
        return self._steps.have_room([self.sequence, *(other.sequence for other in others)])

    def ready(self) -> list[Token] | None:
        """The tokens of the next id, if they are there; [] at the end."""
        return self._steps.ready(self.sequence)

    def message(self) -> Message:
        """The rest of it as one message of the assistant, to be put into the conversation."""
        tokens = list(self)
        calls: dict[int, tuple[CallHead, list[str]]] = {}
        for token in tokens:
            if token.call is not None:
                calls.setdefault(token.call.index, (token.call, []))[1].append(token.text)
        return Message(
            role="assistant",
            content=text_of(tokens, "content"),
            reasoning_content=text_of(tokens, "reasoning") or None,
            tool_calls=tuple(
                ToolCall(name=head.name, arguments="".join(texts) or "{}", id=head.id)
                for head, texts in calls.values()
            ),
        )

    def close(self) -> None:
        """End it; from any thread, twice is fine."""
        self._rest.clear()
        self._steps.leave(self.sequence)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer. index: of its prompt; ids: as generated, with the end token.

    error: what ended it early, if anything did.
    """

    index: int
    text: str
    thinking: str
    ids: tuple[int, ...]
    stats: RunStats
    error: OffloadError | None = None


def completions(
    requests: Iterable[Request], start: Callable[[Request], Answer], steps: Steps, at_once: int
) -> Iterator[Completion]:
    """Answer together, at most `at_once` and as many as there is room for; whole ones as they come.

    start: makes the answer to a request.
    """
    waiting = deque(enumerate(requests))
    running: dict[int, Answer] = {}
    said: dict[int, list[Token]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, request = waiting[0]
                answer = start(request)
                if running and not steps.has_room(answer.sequence):
                    break
                waiting.popleft()
                running[index], said[index] = answer, []
                answer.begin()
            got = {index: _ready(answer) for index, answer in running.items()}
            for index, tokens in got.items():
                if isinstance(tokens, list) and tokens:
                    said[index] += tokens
                elif tokens is not None:
                    error = None if isinstance(tokens, list) else tokens
                    yield _completion(index, running.pop(index), said.pop(index), error)
            if all(tokens is None for tokens in got.values()):
                steps.advance(*(answer.sequence for answer in running.values()))
    finally:
        for answer in running.values():
            answer.close()


def _ready(answer: Answer) -> list[Token] | OffloadError | None:
    try:
        return answer.ready()
    except OffloadError as exc:
        return exc


def _completion(
    index: int, answer: Answer, tokens: list[Token], error: OffloadError | None
) -> Completion:
    answer.close()
    return Completion(
        index=index,
        text=text_of(tokens, "content"),
        thinking=text_of(tokens, "reasoning"),
        ids=tuple(answer.sequence.generated),
        stats=answer.stats,
        error=error,
    )


def text_of(tokens: Iterable[Token], channel: Channel) -> str:
    """What was said in one channel."""
    return "".join(token.text for token in tokens if token.channel == channel)
