"""Teaching a small model to copy: heads that look back, and heads that look up.

To write a word of the prompt again, a model finds where its latest token stood before and takes
the token after it. That needs a head that tells each position the token before it, and a head of
a later layer that finds it. Such a pair forms by itself only after long training. Here some heads
are told where to look (`looking_loss`), on text that repeats itself (`drill`).
"""

import random

import torch
from model import Mini
from tokenizer import Tokenizer
from torch import Tensor

BACK = ((1, 0), (1, 1))  # layer and head: look at the token before
LOOKUP = ((2, 0), (2, 1), (3, 1), (3, 2))  # look behind an earlier copy of this token
PERIOD = (3, 40)  # tokens that a drill repeats


def drill(tokenizer: Tokenizer, rng: random.Random) -> tuple[list[int], list[float]]:
    """Random tokens, or random words, written two or three times; ids and loss weights.

    A token counts if it can be known: from the second of a repetition on.
    """
    period, times = rng.randint(*PERIOD), rng.choice((2, 2, 3))
    pool = range(len(tokenizer.ranks))
    if rng.random() < 0.5:
        pool = tokenizer.words
    ids = rng.choices(pool, k=period) * times
    return ids, [0.0] * (period + 1) + [1.0] * (len(ids) - period - 1)


def watch(model: Mini) -> None:
    """Let the attention of the heads that `looking_loss` reads keep its scores."""
    for layer, block in enumerate(model.blocks):
        block.attn.watched = [head for at, head in BACK + LOOKUP if at == layer]


def looking_loss(model: Mini, ids: Tensor, weights: Tensor, docs: Tensor) -> Tensor:
    """Mean cross-entropy of where the heads looked in the last forward pass, in nats.

    ids, weights, docs (B, S + 1): as drawn. LOOKUP counts at targets of full weight that an
    earlier place would have told: one with the same token before the same next token.
    """
    here, following = ids[:, :-1], ids[:, 1:]
    size = here.shape[1]
    seen = torch.ones(size, size, dtype=torch.bool).tril()
    seen = seen & (docs[:, :-1, None] == docs[:, None, :-1])
    back = seen & torch.ones(size, size, dtype=torch.bool).tril(-1).triu(-1)
    same = (here[:, :, None] == here[:, None, :]) & (following[:, :, None] == following[:, None])
    copies = torch.zeros_like(seen)
    copies[:, :, 1:] = (same & seen).tril(-1)[:, :, :-1]
    told = copies.any(-1) & (weights[:, 1:] == 1.0)
    losses = []
    for heads, targets, counted in ((BACK, back, back.any(-1)), (LOOKUP, copies, told)):
        for layer, head in heads:
            scores = model.blocks[layer].attn.scores[head].masked_fill(~seen, -1e9)
            hit = scores.log_softmax(-1).masked_fill(~targets, -1e9).logsumexp(-1)
            losses.append(-(hit * counted).sum() / counted.sum().clamp_min(1))
    return torch.stack(losses).mean()
