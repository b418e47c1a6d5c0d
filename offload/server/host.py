"""Host: the model behind the server: being loaded, there, or gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from offload.engine import Engine, Progress
from offload.server.desk import Desk
from offload.server.errors import unavailable
from offload.server.metrics import Metrics
from offload.server.slot_files import SlotFiles
from offload.stats import LoadProgress

Load = Callable[[Progress], Engine]
SAVE_SECONDS = 5.0  # between two looks whether conversations can be saved
RETRY = 2  # seconds after which it may have been loaded


class StoppedError(Exception):
    """Ends loading: nobody waits for the model any more."""


class Host:
    """name: of the model, as clients know it. parallel, queue: of the desk.

    files: keeps conversations on the disk over a restart. note: takes lines for people, in any
    thread.
    """

    def __init__(
        self,
        name: str,
        *,
        parallel: int,
        queue: int,
        defaults: Mapping[str, Any] | None = None,
        files: SlotFiles | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.name = name
        self.parallel, self.queue = parallel, queue
        self.defaults: Mapping[str, Any] = defaults or {}
        self.since = time.time()
        self.metrics = Metrics()
        self.loading: LoadProgress | None = None  # the latest news
        self.error: Exception | None = None  # why there is no model
        self.is_stopping = False
        self._desk: Desk | None = None
        self._files, self._note = files, note
        self._thread: threading.Thread | None = None
        self._saving = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether there is a model."""
        return self._desk is not None

    @property
    def desk(self) -> Desk:
        """FailureError while the model is being loaded."""
        if self._desk is None:
            raise unavailable("the model is being loaded; GET /health tells how far it is", RETRY)
        return self._desk

    @property
    def engine(self) -> Engine:
        """Likewise."""
        return self.desk.engine

    def open(self, load: Load) -> None:
        """Begin to load, in a thread."""
        self._thread = threading.Thread(target=self._load, args=(load,), name="load", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Wait until the model is there; raises why it cannot be."""
        while self._thread is not None and self._thread.is_alive():
            await asyncio.sleep(0.02)
        if self.error is not None:
            raise self.error

    async def close(self, drain_seconds: float) -> bool:
        """Let go of the model, after what it still answers; whether all of that came to its end."""
        self.is_stopping = True
        is_done = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, drain_seconds)
        if self._desk is not None:
            is_done = await self._desk.drain(drain_seconds)
            await asyncio.to_thread(self._desk.close)
            await self._save()
            await asyncio.to_thread(self._desk.engine.close)
        if self._files is not None:
            self._files.close()
        return is_done

    async def keep(self) -> None:
        """Save conversations whenever nothing is asked for, until `close`."""
        ended = -1
        while self._files is not None:
            await asyncio.sleep(SAVE_SECONDS)
            if self.is_stopping:
                return
            if self._desk is not None and not self._desk.n_open:
                if self._desk.totals.answers != ended:
                    await self._save()
                ended = self._desk.totals.answers

    async def _save(self) -> None:
        if self._files is not None:
            async with self._saving:  # the end may come while it is kept
                for line in await asyncio.to_thread(self._files.save, self.engine):
                    self._note(line)

    def _load(self, load: Load) -> None:
        def progress(news: LoadProgress) -> None:
            self.loading = news
            if self.is_stopping:
                raise StoppedError

        try:
            engine = load(progress)
            if self._files is not None:
                for line in self._files.restore(engine):
                    self._note(line)
        except StoppedError:
            return
        except Exception as exc:
            self.error = exc
            return
        self._desk = Desk(
            engine, parallel=self.parallel, queue=self.queue, observe=self.metrics.observe
        )
        self.metrics.watch(self._desk)
