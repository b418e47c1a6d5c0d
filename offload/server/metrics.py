"""GET /metrics: what the desk has done, for Prometheus.

Names follow llama.cpp's server and vLLM's, with a prefix of our own. Counters are read from the
desk when they are asked for; only answers that end cost anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from offload.server.desk import Desk
from offload.server.errors import Failure
from offload.server.ticket import Seat

PREFIX = "kimi_offload_"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


class Metrics:
    """Of one host, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._first = Histogram(
            f"{PREFIX}time_to_first_token_seconds",
            "From the slot to the first token.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._waited = Histogram(
            f"{PREFIX}request_queue_time_seconds",
            "From the request to the slot, or to its end without one.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._whole = Histogram(
            f"{PREFIX}e2e_request_latency_seconds",
            "From the request to the end of its answer.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._ends = Counter(
            f"{PREFIX}request_end",
            "Answers that have ended, by reason; abort: the client has left.",
            ["finished_reason"],
            registry=self._registry,
        )

    def watch(self, desk: Desk) -> None:
        """Tell of this desk from now on."""
        self._registry.register(_OfDesk(desk))

    def observe(self, seat: Seat, failure: Failure | None) -> None:
        """An answer has ended."""
        now = time.monotonic()
        stats = None if seat.answer is None else seat.answer.stats
        reason = "error" if failure else "abort"
        if stats is not None and stats.finish_reason and not failure:
            reason = stats.finish_reason
        self._ends.labels(reason).inc()
        self._waited.observe((seat.began or now) - seat.ticket.asked)
        self._whole.observe(now - seat.ticket.asked)
        if stats is not None and seat.n_tokens:
            self._first.observe(stats.time_to_first_token)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)


class _OfDesk(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> Iterator[Metric]:
        desk, totals = self._desk, self._desk.totals
        views = desk.snapshot()
        running = sum(view.number >= 0 for view in views)
        decoded, read = totals.tokens, totals.prompt_tokens - totals.reused_tokens
        for name, text, value in (
            ("requests", "Requests taken.", totals.requests),
            ("answers", "Answers taken; a request may ask for several.", totals.taken),
            ("requests_refused", "Requests refused because the queue was full.", totals.refused),
            ("prompt_tokens", "Tokens of prompts.", totals.prompt_tokens),
            ("prompt_tokens_cached", "Of these, found in the KV cache.", totals.reused_tokens),
            ("prompt_seconds", "Seconds spent reading prompts.", totals.prompt_seconds),
            ("tokens_predicted", "Tokens generated.", decoded),
            ("tokens_predicted_seconds", "Seconds spent generating.", totals.decode_seconds),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=value)
        for name, text, amount in (
            ("prompt_tokens_seconds", "Prompt tokens per second so far.",
             read / totals.prompt_seconds if totals.prompt_seconds else 0.0),
            ("predicted_tokens_seconds", "Tokens generated per second so far.",
             totals.decode_tokens / totals.decode_seconds if totals.decode_seconds else 0.0),
            ("requests_processing", "Answers that run.", running),
            ("requests_deferred", "Answers that wait.", len(views) - running),
            ("slots", "Answers that may run together.", desk.parallel),
        ):  # fmt: skip
            yield GaugeMetricFamily(PREFIX + name, text, value=amount)
