"""What a GGUF file holds, from its headers alone: sizes and types by family of tensors."""

import importlib.resources
import sys

import offload

embedded = importlib.resources.files("offload.data") / "kimi-mini.gguf"
with offload.GGUFFile.open(sys.argv[1] if len(sys.argv) > 1 else str(embedded)) as file:
    config = offload.ModelConfig.from_gguf(file)
    census = offload.census(file, config)
    print(f"{config.name}: {config.num_layers} layers, {config.n_routed_experts} routed experts")
    for family in census.families:
        types = ", ".join(ggml_type.name for ggml_type in family.types)
        print(f"{family.name:<15} {family.n_bytes:>12,} bytes  {types}")
    print(f"one decoded token reads {census.bytes_per_token:,} of {census.n_bytes:,} bytes")
