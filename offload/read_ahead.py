"""Weights that stay in mapped files are brought into memory while the first prompt is read."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import numpy as np

from offload.memory import advise, populate

log = logging.getLogger(__name__)

PIECE = 16 << 20  # bytes between two looks whether to go on
PAGE = 4096


class ReadAhead:
    """A thread that reads these bytes once, in order; it ends by itself, at `close`, and at exit.

    views: of mapped files, uint8. Nothing depends on it: what it has not read is read when a kernel
    wants it, and errors of the disk are told there.
    """

    def __init__(self, views: Sequence[np.ndarray]) -> None:
        self._is_closed = False
        self._thread = threading.Thread(
            target=self._run, args=(list(views),), name="offload-read-ahead", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until all is read, or it was closed."""
        self._thread.join()

    def close(self) -> None:
        """End it soon; does not wait."""
        self._is_closed = True

    def _run(self, views: list[np.ndarray]) -> None:
        pieces = [view[at : at + PIECE] for view in views for at in range(0, len(view), PIECE)]
        del views
        began, n_bytes = time.monotonic(), sum(map(len, pieces))
        for i, piece in enumerate(pieces):
            if self._is_closed:
                return
            for following in pieces[i + 1 : i + 2]:
                advise(following, "need")
            if not populate(piece):
                piece[::PAGE].max(initial=0)
        log.info("read ahead: %.1f GiB in %.1f s", n_bytes / 2**30, time.monotonic() - began)
