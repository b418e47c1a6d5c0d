"""Logits of every position, for measuring: a sequence of its own that nobody samples from."""

from __future__ import annotations

import numpy as np

from offload.batch import Batch, Runs, Span
from offload.errors import RequestError
from offload.pass_watch import Cancelled
from offload.steps import Steps


class Job:
    """What can be cancelled."""

    is_over = is_cancelled = False

    def cancel(self) -> None:
        """End it before the next layer."""
        self.is_cancelled = True


def all_logits(steps: Steps, ids: np.ndarray, expanded: Runs, kind: str) -> np.ndarray:
    """(T, V) float32 of tokens ids (T,) in a slot of its own with rows of this kind.

    expanded: see `batch.expanded_runs`.

    Between two pieces of the prompt, answers may run their steps.
    """
    job, number, parts, slots = Job(), None, [], steps.slots
    steps.jobs.append(job)

    def check() -> None:
        steps.holder.check_open()
        if job.is_cancelled:
            raise Cancelled

    try:
        for first in range(0, len(ids), steps.chunk):
            with steps.alone():
                check()
                if number is None:
                    slots = steps.slots
                    number = slots.lend(kind, len(ids))
                if not steps.has(slots):
                    raise RequestError("the device failed before all logits were computed")
                piece = ids[first : first + steps.chunk]
                span = Span(slot=number, first=first, count=len(piece), expanded=expanded)
                batch = Batch(spans=(span,), ids=piece, wanted=np.arange(len(piece)))
                parts.append(steps.model.forward(batch, check))
                steps.model.check_logits(parts[-1])
    except Cancelled:
        raise RequestError("cancelled before all logits were computed") from None
    finally:
        steps.jobs.remove(job)
        if number is not None and steps.has(slots) and not steps.holder.is_closed:
            with steps.alone():
                if steps.has(slots):
                    slots.take_back(number)
    return np.concatenate(parts)
