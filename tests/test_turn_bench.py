"""The bench of later turns, at a small size: what is read of them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from offload import batch, batching
from offload.bench import shapes, turn_bench

TINY = replace(
    shapes.KIMI_K25, name="tiny", num_layers=4, hidden_size=256, num_heads=4, q_lora_rank=256,
    kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, n_routed_experts=24,
    num_experts_per_tok=4, moe_intermediate_size=256, intermediate_size=512,
    rope=replace(shapes.KIMI_K25.rope, dim=16), vocab_size=512, context_length=2048,
)  # fmt: skip


def test_new_tokens_are_read_and_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    small = {
        "FIRST": 64, "ANSWER": 8, "NEW": 30, "REASONING": 9, "TOOLS": (5, 40), "CALL": 3,
        "DEPTHS": (32,), "PIECES": (18, 20), "CONTEXT": 200, "TIMES": 1,
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(turn_bench, name, value)
    for module in (batch, turn_bench):
        monkeypatch.setattr(module, "EXACT_CONTEXT", 16)
    monkeypatch.setattr(batch, "EXPANDED_TOKENS", 8)
    monkeypatch.setattr(batching, "SHARING", 8)
    assert turn_bench.main("tiny", "TQ1_0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("second turn: 34 tokens read of 105, ")
    assert lines[2].startswith(
        "second turn, 9 tokens of reasoning dropped: 41 tokens read of 105, "
    )
    # beside the new ones, the last token of each answer
    assert lines[3].startswith("agent: 2 turns to 121 tokens: 53 read of 51 new ones, 1.039 times")
    assert "of the 105 beyond 16, 17 are absorbed" in lines[3]
    assert re.match(r"18 tokens after 32: absorbed \d+ ms a layer, expanded \d+: ", lines[4])
