"""kimi-offload: run Kimi K2.5 and the GGUF deepseek2 family on a workstation.

    import offload

    with offload.load("model.gguf") as engine:
        for token in engine.chat([{"role": "user", "content": "What is a hot expert?"}]):
            print(token.text, end="", flush=True)

Names are imported when they are first used, so `import offload` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from offload.version import __version__

if TYPE_CHECKING:
    from offload.answer import Token
    from offload.config import ModelConfig
    from offload.data import embedded_model
    from offload.engine import Engine, load
    from offload.errors import (
        DeviceError,
        GGUFError,
        OffloadError,
        PlanError,
        RequestError,
        UnsupportedError,
    )
    from offload.expert_cache import CacheStats, ExpertCache
    from offload.expert_layout import LayoutOptions
    from offload.gguf import GGUFFile
    from offload.hardware import HardwareProfile, probe
    from offload.plan import Plan
    from offload.planner import PlanOptions, make_plan
    from offload.policies import (
        LFU,
        LRU,
        POLICIES,
        AdmitLFU,
        CachePolicy,
        ExpertKey,
        PerLayer,
        PinnedHot,
    )
    from offload.replay import RoutingTrace, hit_rates
    from offload.sampling_params import SamplingParams
    from offload.stats import LoadProgress, Repetition, RunStats
    from offload.tensor_census import census

_HOMES = {
    "census": "offload.tensor_census",
    "ModelConfig": "offload.config",
    "Engine": "offload.engine",
    "Token": "offload.answer",
    "load": "offload.engine",
    "embedded_model": "offload.data",
    "DeviceError": "offload.errors",
    "GGUFError": "offload.errors",
    "OffloadError": "offload.errors",
    "PlanError": "offload.errors",
    "RequestError": "offload.errors",
    "UnsupportedError": "offload.errors",
    "CacheStats": "offload.expert_cache",
    "ExpertCache": "offload.expert_cache",
    "LayoutOptions": "offload.expert_layout",
    "GGUFFile": "offload.gguf",
    "HardwareProfile": "offload.hardware",
    "probe": "offload.hardware",
    "Plan": "offload.plan",
    "PlanOptions": "offload.planner",
    "make_plan": "offload.planner",
    "AdmitLFU": "offload.policies",
    "CachePolicy": "offload.policies",
    "ExpertKey": "offload.policies",
    "LFU": "offload.policies",
    "LRU": "offload.policies",
    "POLICIES": "offload.policies",
    "PerLayer": "offload.policies",
    "PinnedHot": "offload.policies",
    "RoutingTrace": "offload.replay",
    "hit_rates": "offload.replay",
    "SamplingParams": "offload.sampling_params",
    "LoadProgress": "offload.stats",
    "Repetition": "offload.stats",
    "RunStats": "offload.stats",
}

__all__ = [
    "AdmitLFU",
    "CachePolicy",
    "CacheStats",
    "DeviceError",
    "Engine",
    "ExpertCache",
    "ExpertKey",
    "GGUFError",
    "GGUFFile",
    "HardwareProfile",
    "LFU",
    "LRU",
    "LayoutOptions",
    "LoadProgress",
    "ModelConfig",
    "OffloadError",
    "POLICIES",
    "PerLayer",
    "PinnedHot",
    "Plan",
    "PlanError",
    "PlanOptions",
    "Repetition",
    "RequestError",
    "RoutingTrace",
    "RunStats",
    "SamplingParams",
    "Token",
    "UnsupportedError",
    "__version__",
    "census",
    "embedded_model",
    "hit_rates",
    "load",
    "make_plan",
    "probe",
]


if not TYPE_CHECKING:  # for type checkers, unknown names are errors

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'offload' has no attribute {name!r}")
        from offload.errors import OffloadError
        from quant.ggml import QuantError

        try:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        except QuantError as exc:  # a wrong KIMI_OFFLOAD_ISA shows when kernels are imported
            raise OffloadError(str(exc)) from exc
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
