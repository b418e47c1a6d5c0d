"""`bench --shape --device`: a few layers of random weights in a file in RAM, loaded as any model.

The plan is the real one. Slots in VRAM are as many for each layer as the whole model would have on
this card, so that a few layers do not hit more often than all of them would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from offload.amounts import binary_amount
from offload.bench.disk_model import disk_model, written
from offload.bench.model_bench import bench_model
from offload.bench.on_gpu import check_gpu
from offload.bench.options import ModelOptions, ShapeOptions
from offload.bench.shapes import shape_named, types_named
from offload.errors import DeviceError
from offload.forecast.boxes import BoxWish, this_machine
from offload.forecast.boxes import rates_here as rates_of
from offload.forecast.gpus import Gpu
from offload.forecast.model_facts import facts_of_shape
from offload.forecast.placement import place
from offload.gpu.probe import GpuFacts
from offload.hardware import gpus, probe
from offload.plan_options import DEFAULT_CONTEXT
from offload.plane_sizes import plane_bytes
from offload.stats import LoadProgress
from offload.tiering import amount_argument

LAYERS: Final = 2
PROMPT: Final = 4096
IN_RAM: Final = Path("/dev/shm")
Report = Callable[[LoadProgress], None]


def bench_shape_on_gpu(
    options: ShapeOptions, report: Report = lambda progress: None
) -> dict[str, Any]:
    """Measure; the result is ready for JSON. DeviceError, PlanError, UnsupportedError."""
    check_gpu(options.device)
    layers = options.layers or LAYERS
    wanted = disk_model(
        options.shape, options.experts, options.attention, options.shared, layers
    )
    folder = IN_RAM if IN_RAM.is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as place_:
        path = Path(place_) / "shape.gguf"
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
                cache=_slots(options, layers) if options.device == "hybrid" else "auto",
            ),
            report,
        )
    full = shape_named(options.shape)
    token = 1 / result["ours"][f"decode {options.depth}"]["tps"]
    seconds = token / layers * full.num_moe_layers
    result["notes"] += [
        f"{layers} of {full.num_moe_layers} MoE layers of {full.name} in random weights, "
        f"{binary_amount(wanted.n_bytes)}: {1e3 * token / layers:.3f} ms each",
        f"{full.num_moe_layers} such layers take {1e3 * seconds:.1f} ms, {1 / seconds:.2f} "
        "tokens/s without dense layers and head",
    ]
    result["shape"] = {
        "name": full.name, "layers": layers, "layer_ms": round(1e3 * token / layers, 4),
        "moe_layers_tps": round(1 / seconds, 3),
    }  # fmt: skip
    return result


def _slots(options: ShapeOptions, layers: int) -> int:
    """Bytes of slots in VRAM for these layers."""
    found = gpus()
    if isinstance(found, str):
        raise DeviceError(found)
    card: GpuFacts = max(found, key=lambda gpu: gpu.free)
    full = shape_named(options.shape)
    types = types_named(options.experts, options.attention, options.shared)
    limit = card.free if options.vram is None else min(card.free, int(_bytes(options.vram)))
    gpu = Gpu(name=card.name, vram=limit, bandwidth=1.0, flops=1.0, pcie=1.0)
    hardware = probe()
    box = this_machine(hardware, rates_of(hardware), BoxWish())
    from dataclasses import replace

    layout = place(
        facts_of_shape(full, types), replace(box, gpus=(gpu,), ram=1 << 50), DEFAULT_CONTEXT, "f16"
    )
    matrices = (types.gate_up, types.gate_up), (full.moe_intermediate_size, full.hidden_size)
    del matrices
    slot = 2 * plane_bytes(types.gate_up, full.moe_intermediate_size, full.hidden_size)
    slot += plane_bytes(types.down, full.hidden_size, full.moe_intermediate_size)
    return max(1, layout.gpu_slots * layers // full.num_moe_layers) * slot


def _bytes(vram: int | str) -> int | str:
    return amount_argument("--vram", vram)
