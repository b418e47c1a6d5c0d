"""Loading for a server: a KV cache that gives each slot the whole context."""

from __future__ import annotations

import logging
from dataclasses import replace
from os import PathLike

from offload.config import ModelConfig
from offload.data import embedded_model
from offload.engine import Engine, Progress
from offload.engine_load import load_as
from offload.errors import PlanError
from offload.gguf import GGUFFile
from offload.hardware import probe
from offload.plan_options import PlanOptions
from offload.planning import Wish, plan_model

log = logging.getLogger(__name__)


def load_slots(
    path: str | PathLike[str] | None, wish: Wish, parallel: int, progress: Progress
) -> Engine:
    """The engine for `parallel` answers at a time; a plan is taken as it is."""
    if isinstance(wish, PlanOptions) and parallel > 1:
        wish = _with_slots(path, wish, parallel, progress)
    engine = load_as(path, wish, progress)
    engine.get_ready()
    kv = engine.plan.kv
    if kv.tokens < parallel * kv.context:
        log.warning(
            "the KV cache has %d tokens, %d slots of %d would need %d: long answers wait for "
            "others; a smaller --context or --parallel gives each its own",
            kv.tokens,
            parallel,
            kv.context,
            parallel * kv.context,
        )
    return engine


def _with_slots(
    path: str | PathLike[str] | None, options: PlanOptions, parallel: int, progress: Progress
) -> PlanOptions:
    """The options with as many tokens of KV cache as slots want, or as there is room for."""
    hardware = probe()
    with GGUFFile.open(embedded_model() if path is None else path) as file:
        config = ModelConfig.from_gguf(file)
        context = plan_model(file, config, options, hardware, progress).kv.context
        slots = parallel
        while slots > 1:
            asked = replace(options, context=context, kv_tokens=slots * context)
            try:
                plan_model(file, config, asked, hardware, progress)
            except PlanError:
                slots //= 2
            else:
                return asked
    return replace(options, context=context)
