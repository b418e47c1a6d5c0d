"""Read the tensors that export.py wrote back."""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, quants
from model import MiniConfig
from torch import Tensor


def read_state(path: Path, c: MiniConfig) -> dict[str, Tensor]:
    """The state of `Mini` from a file that export.py wrote."""
    t = {
        tensor.name: torch.from_numpy(
            np.array(quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        for tensor in GGUFReader(path).tensors
    }
    state = {
        "embed": t["token_embd.weight"], "norm": t["output_norm.weight"],
        "head": t["output.weight"],
    }  # fmt: skip
    names = {
        "attn.norm": "attn_norm", "attn.q_a": "attn_q_a", "attn.q_a_norm": "attn_q_a_norm",
        "attn.q_b": "attn_q_b", "attn.kv_a": "attn_kv_a_mqa", "attn.kv_a_norm": "attn_kv_a_norm",
        "attn.out": "attn_output", "ffn_norm": "ffn_norm", "ffn.gate": "ffn_gate",
        "ffn.up": "ffn_up", "ffn.down": "ffn_down", "ffn.router": "ffn_gate_inp",
        "ffn.shared.gate": "ffn_gate_shexp", "ffn.shared.up": "ffn_up_shexp",
        "ffn.shared.down": "ffn_down_shexp",
    }  # fmt: skip
    for i in range(c.layers):
        p, blk = f"blocks.{i}.", f"blk.{i}."
        for ours, theirs in names.items():
            if f"{blk}{theirs}.weight" in t:
                state[p + ours] = t[f"{blk}{theirs}.weight"]
        state[p + "attn.k_b"] = t[blk + "attn_k_b.weight"].transpose(1, 2).reshape(-1, c.kv_lora)
        state[p + "attn.v_b"] = t[blk + "attn_v_b.weight"].reshape(-1, c.kv_lora)
        if blk + "exp_probs_b.bias" in t:
            state[p + "ffn.bias"] = t[blk + "exp_probs_b.bias"]
            pair = [t[f"{blk}ffn_{n}_exps.weight"] for n in ("gate", "up")]
            state[p + "ffn.gate_up"] = torch.cat(pair, 1)
            state[p + "ffn.down"] = t[blk + "ffn_down_exps.weight"]
    return state
