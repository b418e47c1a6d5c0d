"""Shows some heads where to look for the words that a talk with the tool repeats.

The call repeats the city of the question, the answer the degrees and the sky of the result. A
head that has never had to find a word in the prompt learns it very slowly from the loss alone.
"""

import re

import torch
from model import Mini
from tokenizer import Tokenizer
from tool_talk import CITIES, SKIES
from torch import Tensor

HEADS = ((2, 0), (3, 1))  # layer and head
WORDS = re.compile(rf"(?P<city>{'|'.join(CITIES)})|(?P<sky>{'|'.join(SKIES)})|\d+(?= degrees)")
USER = "<|im_user|>"


def labels(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """What each token is the beginning of: 0 nothing, else a number for each word to repeat.

    The second digit of the degrees has a number of its own; a new question begins new numbers.
    """
    pieces = [tokenizer.decode([i]) for i in ids]
    starts, at = {}, 0
    for n, piece in enumerate(pieces):
        for offset in range(len(piece)):
            starts[at + offset] = n
        at += len(piece)
    text = "".join(pieces)
    found = [0] * len(ids)
    for match in WORDS.finditer(text):
        question = 4 * text.count(USER, 0, match.start())
        kind = 1 if match["city"] else 2 if match["sky"] else 3
        first, last = starts[match.start()], starts[match.end() - 1]
        found[first] = question + kind
        if kind == 3 and last > first:
            found[last] = question + 4
    return found


def watch(model: Mini) -> None:
    """Let the attention of HEADS keep its scores."""
    for layer, block in enumerate(model.blocks):
        block.attn.watched = [head for at, head in HEADS if at == layer]


def looking_loss(model: Mini, weights: Tensor, docs: Tensor, marks: Tensor) -> Tensor:
    """Mean cross-entropy of where HEADS looked in the last forward pass, in nats.

    weights, docs, marks (B, S + 1): as drawn; marks are `labels`. Before a marked target a head
    should look at an earlier token with the same mark.
    """
    size = marks.shape[1] - 1
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    seen = seen & (docs[:, :-1, None] == docs[:, None, :-1])
    same = (marks[:, 1:, None] == marks[:, None, :-1]) & (marks[:, 1:, None] > 0) & seen
    told = same.any(-1) & (weights[:, 1:] >= 1.0)
    losses = []
    for layer, head in HEADS:
        scores = model.blocks[layer].attn.scores[head].masked_fill(~seen, -1e9)
        hit = scores.log_softmax(-1).masked_fill(~same, -1e9).logsumexp(-1)
        losses.append(-(hit * told).sum() / told.sum().clamp_min(1))
    return torch.stack(losses).mean()
