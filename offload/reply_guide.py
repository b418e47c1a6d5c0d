"""When which rule holds in a reply: a budget of thinking, a format of the content, calls of tools.

    reasoning --</think>--> content, or calls of tools; a call may come out of both

Each state says which tokens may come and, told one, which state follows. What is forced is written
in the tokens in which the model's own prompts write it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from offload.call_rules import CallRules
from offload.grammar import Grammar, JsonText
from offload.guide import BITS, Allowed, all_but, with_ids
from offload.tokenizer import Tokenizer

# of a reply: reasoning, content, or either, if the model opens its reasoning itself
Beginning = Literal["reasoning", "content", "either"]

_CHARACTER = 4  # bytes at most, so tokens


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a reply must keep to.

    budget: tokens of reasoning. content: the format of what follows it. calls: how they are held
    to their form; None: not at all. never: tokens that must not come.
    """

    tokenizer: Tokenizer
    begins: Beginning
    think_open: int | None
    think_close: int | None
    budget: int | None = None
    content: Grammar | None = None
    calls: CallRules | None = None
    never: frozenset[int] = frozenset()

    @property
    def awaits(self) -> bool:
        """Whether the reply must not end with its reasoning."""
        return self.content is not None or (self.calls is not None and self.calls.is_forced)

    @cached_property
    def ends(self) -> list[int]:
        """What ends a reply."""
        return sorted(self.tokenizer.eog_ids)

    @cached_property
    def free(self) -> BITS | None:
        """What may come where nothing else is said."""
        return all_but(self.never, self.tokenizer.n_vocab) if self.never else None

    @cached_property
    def thoughts(self) -> BITS | None:
        """What may come in reasoning."""
        if not self.awaits:
            return self.free
        return all_but(self.never | self.tokenizer.eog_ids, self.tokenizer.n_vocab)


class ReplyGuide:
    """The guide of one reply."""

    def __init__(self, rules: Rules) -> None:
        run = self._run = _Run(rules)
        self._ends = rules.tokenizer.eog_ids
        self._state: _State
        if rules.begins == "reasoning":
            self._state = _Reasoning(run)
        elif rules.begins == "either":
            self._state = _Opening(run)
        else:
            self._state = run.after_reasoning()

    @property
    def note(self) -> str:
        """As `Guide` says."""
        return self._run.note

    def allowed(self) -> Allowed:
        """As `Guide` says."""
        return self._state.allowed()

    def push(self, token_id: int) -> None:
        """As `Guide` says."""
        if token_id not in self._ends:
            self._state = self._state.push(token_id)


class _State(Protocol):
    def allowed(self) -> Allowed: ...

    def push(self, token_id: int) -> _State: ...


# tokens that come one after the other, and what follows them
_Way = tuple[list[int], Callable[[], _State]]


class _Run:
    """What the states of one reply share. thought: tokens of reasoning. calls: so far.

    note: on the latest text that got beyond its schema.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.thought = 0
        self.calls = 0
        self.note = ""

    def watch(self, text: JsonText) -> None:
        """Something was asked of it, or told."""
        if text.loosened:
            self.note = f"held to JSON, no longer to its schema: {text.loosened}"

    def after_reasoning(self) -> _State:
        calls = self.rules.calls
        if calls is not None and calls.is_forced:
            return _Fork(self.calls_after(calls, "", calls.marks.section_begin))
        return _Free(self) if self.rules.content is None else _Content(self, self.rules.content)

    def call(self, token_id: int) -> _State | None:
        """What follows if this token opens a call."""
        calls = self.rules.calls
        if calls is None or token_id not in calls.starts:
            return None
        return _Fork(self.calls_after(calls, "", calls.starts[token_id])).push(token_id)

    def calls_after(self, calls: CallRules, ended: str, before: str) -> list[_Way]:
        """Ways through the next call's head. ended: of the call before it."""
        number = calls.written + self.calls
        in_section = bool(ended) or before == calls.marks.section_begin

        def arguments(grammar: Grammar) -> Callable[[], _State]:
            return lambda: _Arguments(self, calls, grammar, in_section=in_section)

        return [
            (calls.head(ended + before, name, number), arguments(grammar))
            for name, grammar in calls.arguments.items()
        ]

    def after_arguments(self, calls: CallRules, *, in_section: bool) -> _State:
        self.calls += 1
        marks = calls.marks
        # a model that opened no section may still close one
        closings = {marks.section_end} if in_section else {"", marks.section_end}
        ways: list[_Way] = [
            ([*calls.tail(closing), end], lambda: _Free(self))
            for closing in sorted(closings)
            for end in self.rules.ends
        ]
        if not calls.is_single:
            ways += self.calls_after(calls, marks.call_end, marks.between)
        return _Fork(ways)


class _Free:
    """Whatever the model likes."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def allowed(self) -> Allowed:
        return self._run.rules.free

    def push(self, token_id: int) -> _State:
        if token_id == self._run.rules.think_open:
            return _Reasoning(self._run)
        return self._run.call(token_id) or self


class _Opening:
    """What follows reasoning, unless the model opens that."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._after = run.after_reasoning()

    def allowed(self) -> Allowed:
        given, think = self._after.allowed(), self._run.rules.think_open
        if given is None or think is None:
            return given
        return with_ids(given.copy(), [think]) if isinstance(given, np.ndarray) else [*given, think]

    def push(self, token_id: int) -> _State:
        if token_id == self._run.rules.think_open:
            return _Reasoning(self._run)
        return self._after.push(token_id)


class _Reasoning:
    """Until its end or a call comes; once the budget is spent, its end, after a whole character."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def allowed(self) -> Allowed:
        rules = self._run.rules
        if rules.budget is None or rules.think_close is None:
            return rules.thoughts
        over = self._run.thought - rules.budget
        is_cut = over >= 0 and bool(self._decoder.getstate()[0])
        return rules.thoughts if over < 0 or (is_cut and over < _CHARACTER) else [rules.think_close]

    def push(self, token_id: int) -> _State:
        rules = self._run.rules
        if token_id == rules.think_close:
            return self._run.after_reasoning()
        called = self._run.call(token_id)
        if called is not None:
            return called
        if token_id != rules.think_open:  # models repeat the one that their prompt ends in
            self._run.thought += 1
            self._decoder.decode(rules.tokenizer.token_bytes(token_id))
        return self


class _Content:
    """JSON, then the end; or a call instead of all that."""

    def __init__(self, run: _Run, grammar: Grammar) -> None:
        self._run = run
        self._text = grammar.text()
        self._has_begun = False

    def allowed(self) -> Allowed:
        rules = self._run.rules
        if self._text.must_end:
            return rules.ends
        bits = self._text.bits()
        self._run.watch(self._text)
        if self._text.may_end:
            with_ids(bits, rules.ends)
        if not self._has_begun and rules.calls is not None:
            with_ids(bits, rules.calls.starts)
        return bits

    def push(self, token_id: int) -> _State:
        called = None if self._has_begun else self._run.call(token_id)
        if called is not None:
            return called
        self._has_begun = True
        self._text.push(token_id)
        self._run.watch(self._text)
        return self


class _Fork:
    """One of several ways; none is the beginning of another."""

    def __init__(self, ways: list[_Way], place: int = 0) -> None:
        self._ways = ways
        self._place = place

    def allowed(self) -> Allowed:
        return sorted({ids[self._place] for ids, _ in self._ways})

    def push(self, token_id: int) -> _State:
        place = self._place + 1
        ways = [way for way in self._ways if way[0][self._place] == token_id]
        ended = next((then for ids, then in ways if len(ids) == place), None)
        return _Fork(ways, place) if ended is None else ended()


class _Arguments:
    """Of one call: a JSON object, which its last brace ends."""

    def __init__(self, run: _Run, calls: CallRules, grammar: Grammar, *, in_section: bool) -> None:
        self._run = run
        self._calls = calls
        self._text = grammar.text()
        self._in_section = in_section

    def allowed(self) -> Allowed:
        bits = self._text.bits()
        self._run.watch(self._text)
        return bits

    def push(self, token_id: int) -> _State:
        self._text.push(token_id)
        self._run.watch(self._text)
        if not self._text.may_end:
            return self
        return self._run.after_arguments(self._calls, in_section=self._in_section)
