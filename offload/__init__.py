"""kimi-offload: run Kimi K2.5 and the GGUF deepseek2 family on a workstation.

    import offload

    with offload.load("model.gguf") as engine:
        for token in engine.chat([{"role": "user", "content": "What is a routed expert?"}]):
            print(token.text, end="", flush=True)

Names are imported when they are first used, so `import offload` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from offload.version import __version__

if TYPE_CHECKING:
    from offload.answer import Answer, Completion
    from offload.checks import check_model
    from offload.config import ModelConfig
    from offload.data import embedded_model
    from offload.engine import Engine
    from offload.engine_load import load
    from offload.errors import (
        DeviceError,
        GGUFError,
        HubError,
        OffloadError,
        PlanError,
        RequestError,
        UnsupportedError,
    )
    from offload.expert_cache import CacheStats, ExpertCache
    from offload.expert_layout import LayoutOptions
    from offload.faults import damaged_tensors
    from offload.gguf import GGUFFile
    from offload.hardware import HardwareProfile, probe
    from offload.hub import pull
    from offload.messages import Message, ToolCall
    from offload.plan import Plan
    from offload.plan_options import PlanOptions
    from offload.planner import make_plan
    from offload.planning import plan_model
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
    from offload.replay import hit_rates
    from offload.replay_plot import plot_hit_rates
    from offload.routing_trace import RoutingTrace
    from offload.sampling_params import SamplingParams
    from offload.sessions import Session
    from offload.speech import Token
    from offload.stats import LoadProgress, Repetition, RunStats
    from offload.tensor_census import census
    from offload.tiering import TierOptions

_HOMES = {
    "TierOptions": "offload.tiering",
    "census": "offload.tensor_census",
    "check_model": "offload.checks",
    "ModelConfig": "offload.config",
    "Answer": "offload.answer",
    "Completion": "offload.answer",
    "Engine": "offload.engine",
    "Session": "offload.sessions",
    "Token": "offload.speech",
    "load": "offload.engine_load",
    "embedded_model": "offload.data",
    "DeviceError": "offload.errors",
    "GGUFError": "offload.errors",
    "HubError": "offload.errors",
    "OffloadError": "offload.errors",
    "PlanError": "offload.errors",
    "RequestError": "offload.errors",
    "UnsupportedError": "offload.errors",
    "CacheStats": "offload.expert_cache",
    "ExpertCache": "offload.expert_cache",
    "LayoutOptions": "offload.expert_layout",
    "damaged_tensors": "offload.faults",
    "GGUFFile": "offload.gguf",
    "HardwareProfile": "offload.hardware",
    "probe": "offload.hardware",
    "pull": "offload.hub",
    "Message": "offload.messages",
    "ToolCall": "offload.messages",
    "Plan": "offload.plan",
    "PlanOptions": "offload.plan_options",
    "make_plan": "offload.planner",
    "plan_model": "offload.planning",
    "AdmitLFU": "offload.policies",
    "CachePolicy": "offload.policies",
    "ExpertKey": "offload.policies",
    "LFU": "offload.policies",
    "LRU": "offload.policies",
    "POLICIES": "offload.policies",
    "PerLayer": "offload.policies",
    "PinnedHot": "offload.policies",
    "hit_rates": "offload.replay",
    "plot_hit_rates": "offload.replay_plot",
    "RoutingTrace": "offload.routing_trace",
    "SamplingParams": "offload.sampling_params",
    "LoadProgress": "offload.stats",
    "Repetition": "offload.stats",
    "RunStats": "offload.stats",
}

__all__ = [
    "AdmitLFU",
    "Answer",
    "CachePolicy",
    "CacheStats",
    "Completion",
    "DeviceError",
    "Engine",
    "ExpertCache",
    "ExpertKey",
    "GGUFError",
    "GGUFFile",
    "HardwareProfile",
    "HubError",
    "LFU",
    "LRU",
    "LayoutOptions",
    "LoadProgress",
    "Message",
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
    "Session",
    "TierOptions",
    "Token",
    "ToolCall",
    "UnsupportedError",
    "__version__",
    "census",
    "check_model",
    "damaged_tensors",
    "embedded_model",
    "hit_rates",
    "load",
    "make_plan",
    "plan_model",
    "plot_hit_rates",
    "probe",
    "pull",
]


if not TYPE_CHECKING:  # for type checkers, unknown names are errors

    def _is_numbas(exc: ValueError) -> bool:
        """Whether Numba raised it while it was imported (NUMBA_NUM_THREADS=0, say)."""
        trace = exc.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__") == "numba":
                return True
            trace = trace.tb_next
        return False

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'offload' has no attribute {name!r}")
        from offload.errors import OffloadError
        from quant.ggml import QuantError

        try:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        except QuantError as exc:  # a wrong KIMI_OFFLOAD_ISA shows when kernels are imported
            raise OffloadError(str(exc)) from exc
        except ValueError as exc:
            if not _is_numbas(exc):
                raise
            raise OffloadError(
                f"Numba refuses a NUMBA_... variable of the environment: {exc}"
            ) from exc
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
