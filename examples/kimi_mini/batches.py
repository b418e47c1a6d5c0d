"""Rows of training text: the Bible, questions and answers, talks with a tool."""

import random
from collections.abc import Mapping
from typing import Literal

import torch
from corpus import Chats
from looking import labels
from tokenizer import Tokenizer
from tool_talk import Talks
from tool_text import write
from torch import Tensor

REPEATED = 5.0  # loss weight of the first token of a repeated word

Kind = Literal["tools", "chats"]


class Batches:
    """Packs rows of `length` ids from Bible windows and whole conversations."""

    def __init__(self, tokenizer: Tokenizer, chats: Chats, chapters: list[str]) -> None:
        """Encode the chapters once into one stream, [EOS] after each."""
        self.talks = Talks(chats)
        end = tokenizer.special["[EOS]"]
        rng = random.Random(1)
        rng.shuffle(chapters)
        self.stream = [i for text in chapters for i in (*tokenizer.encode(text), end)]
        self.tok, self.chats = tokenizer, chats
        self.order: list[int] = []  # starts of windows still to be read in this epoch
        self.length = 0

    def state(self) -> tuple[list[int], int]:
        """The data position."""
        return self.order, self.length

    def load(self, state: tuple[list[int], int]) -> None:
        """Go back to a data position."""
        self.order, self.length = state

    def _window(self, rng: random.Random, length: int) -> list[int]:
        if not self.order or self.length != length:
            shift = rng.randrange(length)
            self.order = list(range(shift, len(self.stream) - length - 1, length))
            self.length = length
            rng.shuffle(self.order)
        start = self.order.pop()
        return self.stream[start : start + length + 1]

    def _packed(
        self, rng: random.Random, length: int, kind: Kind
    ) -> tuple[list[int], list[float], list[int], list[int]]:
        ids: list[int] = []
        weights: list[float] = []
        docs: list[int] = []
        marks: list[int] = []
        number = 0
        while len(ids) < length + 1:
            mark = None
            if kind == "tools":
                more, weight = write(self.talks.draw(rng), self.chats)
                mark = labels(self.tok, more)
                weight = [
                    REPEATED if m and w == 1.0 else w for m, w in zip(mark, weight, strict=True)
                ]
            elif rng.random() < 0.04:
                text = self.tok.encode(self.chats.glossary(rng))
                more, weight = [*text, self.tok.special["[EOS]"]], [0.0] + [0.3] * len(text)
            else:
                more, weight = self.chats.draw(rng, rng.choice((1, 1, 1, 1, 2, 2, 3, 5)))
            ids += more
            weights += weight
            docs += [number] * len(more)
            marks += mark or [0] * len(more)
            number += 1
        end = length + 1
        return ids[:end], weights[:end], docs[:end], marks[:end]

    def draw(
        self, rng: random.Random, rows: int, length: int, shares: Mapping[Kind, float]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids (rows, length + 1), loss weights, document numbers and marks of the same shape.

        shares: of the rows; what is left is Bible.
        """
        ids, weights, docs, marks = [], [], [], []
        kinds = [(sum(list(shares.values())[: n + 1]), kind) for n, kind in enumerate(shares)]
        for row in range(rows):
            kind = next((kind for upto, kind in kinds if row < round(upto * rows)), None)
            if kind:
                i, w, d, m = self._packed(rng, length, kind)
            else:
                i = self._window(rng, length)
                w, d, m = [1.0] * (length + 1), [0] * (length + 1), [0] * (length + 1)
            ids.append(i)
            weights.append(w)
            docs.append(d)
            marks.append(m)
        return torch.tensor(ids), torch.tensor(weights), torch.tensor(docs), torch.tensor(marks)
