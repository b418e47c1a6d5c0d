"""A conversation: turns of question and answer, and how many of them the model still sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

Message = dict[str, str]
Count = Callable[[list[Message]], int]

ANSWER_SHARE = 4  # without max_tokens, one part in so many of the context is left for the answer
ANSWER_MOST = 4096  # tokens; more than that is not kept free
WARN_AT = 0.8  # of the room for the prompt
# Forgetting changes the start of the prompt, so all of it is read again. Enough is forgotten at
# once that this happens seldom.
KEEP = 0.7  # of the room for the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question and its answer. n_forgotten: turns out of the model's sight when it was asked."""

    question: str
    answer: str
    n_forgotten: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the model is to see; n_tokens: of the prompt."""

    messages: list[Message]
    n_forgotten: int
    n_tokens: int


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Turns in order. The first n_forgotten are kept, and saved, but not shown to the model."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    n_forgotten: int = 0

    def messages(self, n_forgotten: int = 0) -> list[Message]:
        """The system text and the turns after the first `n_forgotten`, as messages."""
        result = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[n_forgotten:]:
            result.append({"role": "user", "content": turn.question})
            result.append({"role": "assistant", "content": turn.answer})
        return result

    def window(self, question: str, count: Count, context: int, max_tokens: int | None) -> Window:
        """As much of the conversation as fits together with `question`, the newest turns first.

        context: tokens. max_tokens: those of the answer, None: a share of the context.
        Raises RequestError if the question does not fit even alone; nothing is changed here.
        """
        from offload.errors import RequestError

        free = answer_room(context, max_tokens)
        room = context - free

        def at(n_forgotten: int) -> Window:
            messages = self.messages(n_forgotten) + [{"role": "user", "content": question}]
            return Window(messages=messages, n_forgotten=n_forgotten, n_tokens=count(messages))

        def fewest(most_tokens: float) -> Window:
            low, high = self.n_forgotten, len(self.turns)
            while low < high:  # in halves: each count reads the whole prompt
                middle = (low + high) // 2
                if at(middle).n_tokens <= most_tokens:
                    high = middle
                else:
                    low = middle + 1
            return at(low)

        now = at(self.n_forgotten)
        if now.n_tokens <= room:
            return now
        window = fewest(KEEP * room)
        if window.n_tokens > KEEP * room:  # the question is long: keep what is possible beside it
            window = fewest(room)
        if window.n_tokens > context - max(1, free // 4):
            raise RequestError(
                f"this message has {window.n_tokens:,} tokens with the system text, the context "
                f"holds {context:,} with the answer; shorten it, or start with a larger --context"
            )
        return window

    def remember(self, window: Window, question: str, answer: str) -> None:
        """Add a turn that was asked with `window`."""
        before = self.n_forgotten
        self.n_forgotten = window.n_forgotten
        self.turns.append(Turn(question=question, answer=answer, n_forgotten=before))

    def take_back(self) -> Turn | None:
        """Remove the last turn, and see again what it made forgotten."""
        if not self.turns:
            return None
        turn = self.turns.pop()
        self.n_forgotten = min(turn.n_forgotten, len(self.turns))
        return turn

    def without_last(self) -> Conversation:
        """The conversation as it was before the last turn."""
        earlier = replace(self, turns=list(self.turns))
        earlier.take_back()
        return earlier


def answer_room(context: int, max_tokens: int | None) -> int:
    """Tokens to keep free for the answer, at least 1 and at most half of the context."""
    wanted = min(ANSWER_MOST, context // ANSWER_SHARE) if max_tokens is None else max_tokens
    return max(1, min(wanted, context // 2))


def is_nearly_full(used: int, context: int, max_tokens: int | None) -> bool:
    """Whether a conversation of `used` tokens will soon have to lose turns."""
    return used >= WARN_AT * (context - answer_room(context, max_tokens))
