"""What GET /metrics tells, as numbers, and whether they add up."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "kimi_offload_"


def read_metrics(client: httpx.Client) -> dict[str, float]:
    """Values by name, without the prefix; summed over labels, without the buckets."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                name = sample.name.removeprefix(PREFIX)
                found[name] = found.get(name, 0.0) + sample.value
    return found


def odd_sums(client: httpx.Client) -> list[str]:
    """What does not add up while nothing runs."""
    told = read_metrics(client)
    taken = told["answers_total"]
    problems = [
        f"{name} is {told[name]:g}, {expected:g} expected"
        for name, expected in (
            ("request_end_total", taken),
            ("request_queue_time_seconds_count", taken),
            ("e2e_request_latency_seconds_count", taken),
            ("requests_processing", 0),
            ("requests_deferred", 0),
        )
        if told[name] != expected
    ]
    if told["time_to_first_token_seconds_count"] > taken:
        problems.append("more first tokens than answers")
    if told["prompt_tokens_cached_total"] > told["prompt_tokens_total"]:
        problems.append("more cached than read")
    return problems
