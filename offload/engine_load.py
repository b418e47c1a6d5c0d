"""`load`: an Engine of a path and options."""

from __future__ import annotations

from os import PathLike

from offload.arguments import check_callable, check_type, path_argument
from offload.engine import Engine, Progress
from offload.errors import PlanError
from offload.expert_layout import Layout, LayoutOptions, budget_bytes
from offload.loading import open_model
from offload.memory import MemoryMode
from offload.plan import KVType, Plan
from offload.plan_options import PlanOptions
from offload.planning import Wish
from offload.tiering import Home, TierOptions


def load(
    path: str | PathLike[str] | None = None,
    *,
    device: str = "auto",
    context: int | None = None,
    kv_tokens: int | None = None,
    threads: int | None = None,
    kv_type: KVType = "f16",
    memory: MemoryMode = "mmap",
    experts_layout: Layout = "auto",
    pack_budget: float | None = None,
    packed_cache: str | PathLike[str] | None = None,
    pin: bool | None = None,
    chunk: int | None = None,
    ram: int | str | None = None,
    vram: int | str | None = None,
    expert_cache: int | str = "auto",
    expert_policy: str | None = None,
    expert_profile: str | PathLike[str] | None = None,
    experts_home: Home = "auto",
    plan: Plan | str | PathLike[str] | None = None,
    wait: bool = False,
    progress: Progress | None = None,
) -> Engine:
    """Open a GGUF and make it ready to answer.

    path: a file, any shard of one, or None for the embedded kimi-mini. device: "cpu", "cuda" or
    "cuda:N" (a GPU, by its number, with the CPU beside it if not the whole model fits), "hybrid" or
    "hybrid:N" (both in any case), or "auto": a GPU if there is one that the model can use. context:
    tokens of KV cache for one answer (None: the planner chooses); kv_tokens: for all that are open
    or may be gone back to (None: as many). threads: None is one per physical core.
    kv_type: "f16", "q8_0" or "f32". memory: "mmap", "resident" or "hugepages". experts_layout:
    "native", "packed" or "auto"; pack_budget: GiB for packed experts (None: what is free);
    packed_cache: a folder that keeps them. pin: workers on cores of their own (None: where it
    helps). chunk: prompt tokens computed in one step, between two tokens of other answers (None:
    by the plan). ram, vram: bytes, or a text such as "24GiB", of RAM and of a GPU's memory that may
    be used at most. expert_cache: memory for copies of routed experts (of the GPU that computes,
    else RAM), bytes or a text, "auto" or "off"; expert_policy: who is evicted, a name of POLICIES
    (None: lru in RAM, layer-lru on a GPU); expert_profile: a saved RoutingTrace that "pinned" pins
    by; experts_home: "map", "disk" (read around the page cache into RAM) or "auto": disk if they do
    not fit into RAM. plan: a Plan, or a file with its JSON, instead of all of these.
    wait: an answer that other answers leave no room in the KV cache waits instead of being refused.
    progress: called now and then while loading.
    Raises GGUFError, UnsupportedError, PlanError, DeviceError or RequestError, each with the way
    out.
    """
    check_callable("progress", progress, optional=True)
    check_type("wait", wait, bool)
    report = progress or (lambda _: None)
    options = PlanOptions(
        device=device,
        context=context,
        kv_tokens=kv_tokens,
        threads=threads,
        kv_type=kv_type,
        memory=memory,
        layout=LayoutOptions(
            layout=experts_layout,
            budget=budget_bytes(pack_budget),
            cache=None if packed_cache is None else path_argument("packed_cache", packed_cache),
        ),
        pin=pin,
        chunk=chunk,
        ram=ram,
        vram=vram,
        tiers=TierOptions(
            cache=expert_cache,
            policy=expert_policy,
            profile=None if expert_profile is None else str(expert_profile),
            home=experts_home,
        ),
    )
    if plan is not None and options != PlanOptions():
        raise PlanError("a plan decides everything: give it alone, or options alone")
    return load_as(path, options if plan is None else plan, report, wait=wait)


def load_as(
    path: str | PathLike[str] | None, wish: Wish, report: Progress, *, wait: bool = False
) -> Engine:
    """`load` with its options as one, or with a plan."""
    parts = open_model(path, wish, report)
    try:
        return Engine(*parts, wait=wait, options=wish if isinstance(wish, PlanOptions) else None)
    except BaseException:
        for part in (parts[-1], parts[-2], parts[0]):
            part.close()
        raise
