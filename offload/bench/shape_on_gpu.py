"""`bench --shape --device`: a few layers of random weights in a file, loaded as any model.

The file lies in RAM where that can be, and goes again.

The plan is the real one. Slots in VRAM are as many for each layer as the whole model would have on
this card, so that a few layers do not hit more often than all of them would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from offload.amounts import binary_amount
from offload.bench.disk_model import disk_model, folder_in_memory, written
from offload.bench.model_bench import bench_model
from offload.bench.on_gpu import found_gpus
from offload.bench.options import ModelOptions, ShapeOptions
from offload.bench.shapes import shape_named, types_named
from offload.errors import PlanError
from offload.forecast.model_facts import facts_of_shape
from offload.forecast.one_card import one_card, sizes_of
from offload.gpu_share import Budget
from offload.plan_options import DEFAULT_CONTEXT
from offload.stats import LoadProgress
from offload.tiering import amount_argument

LAYERS: Final = 2
PROMPT: Final = 4096
Report = Callable[[LoadProgress], None]


def bench_shape_on_gpu(
    options: ShapeOptions, report: Report = lambda progress: None
) -> dict[str, Any]:
    """Measure; the result is ready for JSON. DeviceError, PlanError, UnsupportedError."""
    found_gpus(options.device)
    layers = options.layers or LAYERS
    wanted = disk_model(options.shape, options.experts, options.attention, options.shared, layers)
    cache = slots_of(options, layers) if options.device == "hybrid" else "auto"
    with tempfile.TemporaryDirectory(dir=folder_in_memory(wanted.n_bytes)) as there:
        path = Path(there) / "shape.gguf"
        written(path, wanted, report)
        result = bench_model(
            ModelOptions(
                path=path,
                prompts=(PROMPT,),
                depths=(options.depth,),
                threads=options.threads,
                seconds=options.seconds,
                layout=options.layout,
                pin=options.pin,
                parallel=options.parallel,
                device=options.device,
                vram=options.vram,
                cache=cache,
            ),
            report,
        )
    full = shape_named(options.shape)
    token = 1 / result["ours"][f"decode {options.depth}"]["tps"]
    tps = layers / token / full.num_moe_layers
    result["notes"] += [
        f"{layers} of {full.num_moe_layers} MoE layers of {full.name} in random weights, "
        f"{binary_amount(wanted.n_bytes)}: {1e3 * token / layers:.3f} ms each; all of them, "
        f"without dense layers and head: {tps:.2f} tokens/s"
    ]
    result["shape"] = {
        "name": full.name, "layers": layers, "layer_ms": round(1e3 * token / layers, 4),
        "moe_layers_tps": round(tps, 3),
    }  # fmt: skip
    return result


def slots_of(options: ShapeOptions, layers: int) -> int:
    """Bytes of slots in VRAM that these layers have of what the whole model would have here."""
    full = shape_named(options.shape)
    types = types_named(options.experts, options.attention, options.shared)
    facts = facts_of_shape(full, types)
    limit = None if options.vram is None else amount_argument("--vram", options.vram)
    card = max(found_gpus(options.device), key=lambda gpu: gpu.free)
    budget = Budget(config=full, tensors=sizes_of(facts), gpu=card, kv_type="f16", limit=limit)
    found = one_card(budget, min(DEFAULT_CONTEXT, full.context_length), from_disk=False)
    if found is None or not found.slots:
        raise PlanError(
            f"--device hybrid: {full.name} would have no expert in VRAM on {card.name}; give "
            "--device cpu, or more --vram"
        )
    sizes = budget.experts(found.share).values()
    slots = max(1, found.slots * layers // full.num_moe_layers)
    return slots * max(size.slot for size in sizes) + max(size.stage for size in sizes)
