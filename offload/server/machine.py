"""GET /machine: what the page shows beside the chat, as JSON.

Counters are sent as they stand since the start; the page makes rates of them. The engine is looked
at by its own thread between two steps: who asks while a long one runs gets the look before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any, Final

import psutil
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from offload.arguments import quoted
from offload.engine import Engine
from offload.hardware import probe
from offload.server.desk import Desk
from offload.server.errors import refused
from offload.server.host import Host
from offload.server.machine_check import LATER, LEAST, UNKNOWN, KnownRates, check, find_rates
from offload.server.machine_look import Look, look
from offload.server.machine_plan import PlanFacts, measured_bytes, plan_facts, what_is_off
from offload.stats import RunStats
from offload.topology import OtherWork
from offload.version import __version__

FRESH: Final = 0.4  # seconds that a look is shared by all who ask
PATIENCE: Final = 0.2  # seconds to wait for a new one


class Machine:
    """Of one host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: Look | None = None
        self._seen_at = 0.0  # monotonic
        self._looking: asyncio.Task[None] | None = None
        self._rates: KnownRates | None = None
        self._finding: asyncio.Task[None] | None = None
        self._compared = RunStats()  # the latest answer that was long enough
        self._facts: PlanFacts | None = None
        self._work = OtherWork()
        self._others: float | None = None  # what it said while that answer ran
        self._told_tokens = 0  # of it

    def routes(self) -> list[Route]:
        """The one."""
        return [Route("/machine", self.get)]

    async def get(self, request: Request) -> Response:
        """GET /machine?seen=N; N: `experts.asked` of what the page has."""
        desk = self._host.desk
        text = request.query_params.get("seen", "-1")
        if not text.removeprefix("-").isdecimal() or len(text) > 20:
            raise refused(f"seen must be a whole number, not {quoted(text)}", param="seen")
        seen = await self._look(desk)
        self._find_rates(desk)
        facts, worked_out = await asyncio.to_thread(self._work_out, desk.engine, seen)
        told = self._told(desk, seen, facts, int(text)) | worked_out
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def _look(self, desk: Desk) -> Look:
        """The engine now, or as it was before the step that runs."""
        if self._looking is None or self._looking.done():
            if self._seen is not None and time.monotonic() - self._seen_at < FRESH:
                return self._seen
            self._looking = asyncio.create_task(self._look_again(desk))
        wait = PATIENCE if self._seen is not None else None
        await asyncio.wait({self._looking}, timeout=wait)
        if self._looking.done():
            self._looking.result()
        assert self._seen is not None
        return self._seen

    async def _look_again(self, desk: Desk) -> None:
        self._seen = await desk.between_steps(look)
        self._seen_at = time.monotonic()
        if self._seen.latest.decode_tokens >= LEAST:
            self._compared = self._seen.latest

    def _find_rates(self, desk: Desk) -> None:
        """Once, when nothing runs: memory may be measured for it."""
        if self._finding is None and not desk.n_open:
            self._finding = asyncio.create_task(self._find(desk.engine.plan.threads))

    async def _find(self, threads: int) -> None:
        self._rates = await asyncio.to_thread(find_rates, threads)

    def _work_out(self, engine: Engine, seen: Look) -> tuple[PlanFacts, dict[str, Any]]:
        """What takes milliseconds, beside the event loop."""
        config, facts = engine.config, self._facts
        if facts is None or facts.plan is not seen.plan:
            self._facts = facts = plan_facts(config, engine.census(), seen.plan)
        self._note_others()
        unknown = UNKNOWN if self._finding is not None and self._finding.done() else LATER
        checked = check(
            config,
            facts.census,
            seen.plan,
            self._rates,
            self._compared,
            conditions=seen.conditions(self._others),
            unknown=unknown,
        )
        return facts, {"check": checked, "memory": _memory(seen)}

    def _note_others(self) -> None:
        """How busy other programs are, as long as the answer that is compared goes on."""
        cores = psutil.cpu_count(logical=False) or 1
        share = self._work.share(cores)
        if share is None:
            return
        self._work = OtherWork()
        if self._compared.decode_tokens != self._told_tokens:
            self._told_tokens = self._compared.decode_tokens
            self._others = share

    def _told(self, desk: Desk, seen: Look, facts: PlanFacts, known_uses: int) -> dict[str, Any]:
        config, plan = desk.engine.config, seen.plan
        predicted, per_token = facts.predicted, sum(facts.predicted.values())
        read = measured_bytes(seen, facts)
        views = desk.snapshot()
        totals = desk.totals
        running = [view for view in views if view.number >= 0]
        return {
            "version": __version__,
            "uptime": time.time() - self._host.since,
            "model": {
                "name": self._host.name,
                "architecture": config.architecture,
                "layers": config.num_layers,
                "experts": config.n_routed_experts,
                "experts_per_token": config.num_experts_per_tok,
                "context": plan.kv.context,
                "trained_context": config.context_length,
                "weight_bytes": plan.weight_bytes,
            },
            "tokens": {
                "decoded": totals.tokens + sum(view.tokens for view in running),
                "prompt": totals.prompt_tokens
                - totals.reused_tokens
                + sum(max(0, view.read - view.reused) for view in running),
            },
            "tiers": [
                {
                    "tier": tier,
                    "predicted": predicted.get(tier, 0.0),
                    "bytes": n_bytes,
                    "latest": None
                    if seen.routed or not self._compared.decode_tokens
                    else self._compared.bytes_read_per_token * predicted[tier] / per_token,
                }
                for tier, n_bytes in read.items()
            ],
            "experts": None
            if seen.experts is None
            else {"began": self._host.since} | seen.experts.json(known_uses),
            "parallel": desk.parallel,
            "slots": [dataclasses.asdict(view) for view in views],
            "plan": {"rows": facts.rows, "notes": [*plan.notes, *seen.lines]},
            "off": what_is_off(seen),
        }


def _memory(seen: Look) -> dict[str, Any]:
    """Bytes. process: resident, mapped weights among them; swapped: at the end of an answer."""
    plan, cpu = seen.plan, probe().cpu
    vram = plan.vram
    return {
        "process": psutil.Process().memory_info().rss,
        "swapped": seen.latest.swapped_bytes,
        "available": cpu.ram_free,
        "total": cpu.ram_total,
        "kv": plan.kv.n_bytes,
        "gpu": None if vram is None else vram.gpu,
        "vram_taken": 0 if vram is None else vram.parts_but_kv + vram.kv,
        "vram_total": 0 if vram is None else vram.total,
    }
