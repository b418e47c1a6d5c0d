"""DRY, "don't repeat yourself": tokens that would go on repeating what was said become unlikely.

After p-e-w's proposal (text-generation-webui, 2024): the longer the repeat, the more its next token
loses, exponentially; so loops end while names and phrases may come again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from offload.guide import MASK
from offload.repeats import IDS, suffix_matches
from offload.sampling_params import SamplingParams
from offload.tokenizer import Tokenizer, clean_text

F64 = npt.NDArray[np.float64]
MOST = 1e30  # taken off a logit at most


def breaker_mask(tokenizer: Tokenizer, breakers: Sequence[str]) -> MASK:
    """(n_vocab,) true for tokens that no repeat reaches across: control tokens, and breakers' own.

    A breaker's tokens are those whose text contains it.
    """
    wanted = [clean_text(text).encode() for text in breakers]
    mask = np.zeros(tokenizer.n_vocab, np.bool_)
    for token_id in range(tokenizer.n_vocab):
        data = tokenizer.token_bytes(token_id)
        mask[token_id] = any(text in data for text in wanted) if data else True
    return mask


def dry_penalties(recent: IDS, mask: MASK | None, params: SamplingParams) -> tuple[IDS, F64]:
    """(token ids, what each loses); ids ascending. recent: the ids so far, oldest first."""
    window = recent[max(0, len(recent) - params.dry_window) :]
    allowed = params.dry_allowed_length
    # a longer repeat costs no more than MOST, so it need not be measured
    exponent = math.log(MOST) - math.log(params.dry_multiplier)
    exponent /= math.log(max(params.dry_base, 1 + 1e-9))
    limit = min(len(window), allowed + math.ceil(exponent))
    if mask is not None:
        cuts = np.flatnonzero(mask[window])
        limit = min(limit, len(window) - 1 - int(cuts[-1]) if len(cuts) else limit)
    if limit < allowed:
        return np.empty(0, np.int64), np.empty(0)
    ends, lengths = suffix_matches(window, limit)
    long = lengths >= allowed
    following, lengths = window[ends[long]], lengths[long]
    if mask is not None:
        lengths = lengths[~mask[following]]
        following = following[~mask[following]]
    ids, places = np.unique(following, return_inverse=True)
    longest = np.zeros(len(ids), np.int64)
    np.maximum.at(longest, places, lengths)
    losses = math.log(params.dry_multiplier) + (longest - allowed) * math.log(params.dry_base)
    return ids, np.exp(np.minimum(losses, math.log(MOST)))
