"""Rows of training text: the Bible, questions and answers, talks with tools, repetitions."""

import random
from collections.abc import Mapping
from typing import Literal

import torch
from copying import drill
from corpus import Chats
from tokenizer import Tokenizer
from tool_talk import Talks
from tool_text import write
from torch import Tensor

Kind = Literal["drills", "tools", "chats"]


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
    ) -> tuple[list[int], list[float], list[int]]:
        ids: list[int] = []
        weights: list[float] = []
        docs: list[int] = []
        number = 0
        while len(ids) < length + 1:
            if kind == "drills":
                more, weight = drill(self.tok, rng)
            elif kind == "tools":
                more, weight = write(self.talks.draw(rng), self.chats)
            elif rng.random() < 0.04:
                text = self.tok.encode(self.chats.glossary(rng))
                more, weight = [*text, self.tok.special["[EOS]"]], [0.0] + [0.3] * len(text)
            else:
                more, weight = self.chats.draw(rng, rng.choice((1, 1, 1, 1, 2, 2, 3, 5)))
            ids += more
            weights += weight
            docs += [number] * len(more)
            number += 1
        return ids[: length + 1], weights[: length + 1], docs[: length + 1]

    def draw(
        self, rng: random.Random, rows: int, length: int, shares: Mapping[Kind, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids (rows, length + 1), loss weights and document numbers of the same shape.

        shares: of the rows; what is left is Bible.
        """
        ids, weights, docs = [], [], []
        kinds = [(sum(list(shares.values())[: n + 1]), kind) for n, kind in enumerate(shares)]
        for row in range(rows):
            kind = next((kind for upto, kind in kinds if row < round(upto * rows)), None)
            if kind:
                i, w, d = self._packed(rng, length, kind)
            else:
                i = self._window(rng, length)
                w, d = [1.0] * (length + 1), [0] * (length + 1)
            ids.append(i)
            weights.append(w)
            docs.append(d)
        return torch.tensor(ids), torch.tensor(weights), torch.tensor(docs)
