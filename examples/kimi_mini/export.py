"""Write a checkpoint as GGUF: `python export.py WORK_DIR kimi-mini.gguf`.

Routed experts become TQ1_0, which holds them exactly; the other matrices Q8_0; norms, router
and selection bias stay F32. `--f32` writes everything as F32, for reference.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import ExpertGatingFuncType, GGUFWriter, LlamaFileType, TokenType, quants
from gguf import GGMLQuantizationType as Q
from model import MiniConfig, ternary_rows
from tokenizer import SPECIALS, Tokenizer, byte_alphabet
from torch import Tensor

HERE = Path(__file__).parent


def tensors(state: dict[str, Tensor], c: MiniConfig) -> Iterator[tuple[str, Tensor, Q]]:
    """GGUF name, values and type of every tensor, in file order."""
    yield "token_embd.weight", state["embed"], Q.Q8_0
    yield "output_norm.weight", state["norm"], Q.F32
    yield "output.weight", state["head"], Q.Q8_0
    for i in range(c.layers):
        p, blk = f"blocks.{i}.", f"blk.{i}."
        yield blk + "attn_norm.weight", state[p + "attn.norm"], Q.F32
        yield blk + "attn_q_a.weight", state[p + "attn.q_a"], Q.Q8_0
        yield blk + "attn_q_a_norm.weight", state[p + "attn.q_a_norm"], Q.F32
        yield blk + "attn_q_b.weight", state[p + "attn.q_b"], Q.Q8_0
        yield blk + "attn_kv_a_mqa.weight", state[p + "attn.kv_a"], Q.Q8_0
        yield blk + "attn_kv_a_norm.weight", state[p + "attn.kv_a_norm"], Q.F32
        k_b = state[p + "attn.k_b"].view(c.heads, c.nope, c.kv_lora).transpose(1, 2)
        yield blk + "attn_k_b.weight", k_b, Q.Q8_0
        yield blk + "attn_v_b.weight", state[p + "attn.v_b"].view(c.heads, -1, c.kv_lora), Q.Q8_0
        yield blk + "attn_output.weight", state[p + "attn.out"], Q.Q8_0
        yield blk + "ffn_norm.weight", state[p + "ffn_norm"], Q.F32
        ffn, shared = p + "ffn.", ""
        if ffn + "router" in state:
            yield blk + "ffn_gate_inp.weight", state[ffn + "router"], Q.F32
            yield blk + "exp_probs_b.bias", state[ffn + "bias"], Q.F32
            gate, up = state[ffn + "gate_up"].chunk(2, 1)
            for name, w in (("gate", gate), ("up", up), ("down", state[ffn + "down"])):
                signs, scale = ternary_rows(w)
                yield f"{blk}ffn_{name}_exps.weight", signs * scale, Q.TQ1_0
            ffn, shared = ffn + "shared.", "_shexp"
        for name in ("gate", "up", "down"):
            yield f"{blk}ffn_{name}{shared}.weight", state[ffn + name], Q.Q8_0


def add_metadata(writer: GGUFWriter, c: MiniConfig, tokenizer: Tokenizer) -> None:
    """Everything a loader needs to know besides the tensors."""
    writer.add_name("kimi-mini")
    writer.add_description("A small demonstration model in the shape of Kimi K2.5")
    writer.add_license("mit")
    writer.add_languages(["en"])
    writer.add_block_count(c.layers)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.hidden)
    writer.add_feed_forward_length(c.dense_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_q_lora_rank(c.q_lora)
    writer.add_kv_lora_rank(c.kv_lora)
    writer.add_key_length(c.kv_lora + c.rope)
    writer.add_value_length(c.kv_lora)
    writer.add_key_length_mla(c.nope + c.rope)
    writer.add_value_length_mla(c.v_dim)
    writer.add_rope_dimension_count(c.rope)
    writer.add_rope_freq_base(c.theta)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.top_k)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(c.expert_width)
    writer.add_expert_weights_scale(c.routed_scale)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_expert_group_count(1)
    writer.add_expert_group_used_count(1)
    writer.add_vocab_size(c.vocab)
    alphabet = byte_alphabet()
    names = ["".join(alphabet[b] for b in token) for token in tokenizer.tokens]
    types = [TokenType.NORMAL] * len(names) + [TokenType.CONTROL] * len(SPECIALS)
    names += SPECIALS
    for i in range(len(names), c.vocab):
        names.append(f"[PAD{i}]")
        types.append(TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("kimi-k2")
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges(tokenizer.merges())
    writer.add_bos_token_id(tokenizer.special["[BOS]"])
    writer.add_eos_token_id(tokenizer.special["[EOS]"])
    writer.add_eot_token_id(tokenizer.special["<|im_end|>"])
    writer.add_unk_token_id(tokenizer.special["[UNK]"])
    writer.add_pad_token_id(tokenizer.special["[PAD]"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((HERE / "chat_template.jinja").read_text())


def write(work: Path, out: Path, *, f32: bool) -> None:
    """Export WORK/last.pt and WORK/tokenizer.json to `out`."""
    saved = torch.load(work / "last.pt", weights_only=False)
    config = MiniConfig(**saved["config"])
    writer = GGUFWriter(out, "deepseek2")
    add_metadata(writer, config, Tokenizer.load(work / "tokenizer.json"))
    writer.add_file_type(LlamaFileType.ALL_F32 if f32 else LlamaFileType.MOSTLY_TQ1_0)
    writer.add_quantization_version(2)
    for name, values, wanted in tensors(saved["model"], config):
        kind = Q.F32 if f32 else wanted
        data = values.float().contiguous().numpy()
        packed = np.ascontiguousarray(quants.quantize(data, kind))
        if kind == Q.TQ1_0 and not np.array_equal(quants.dequantize(packed, kind), data):
            raise ValueError(f"{name}: TQ1_0 does not hold the trained values")
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Parse the arguments and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory of last.pt and tokenizer.json")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--f32", action="store_true", help="store every tensor as F32")
    args = parser.parse_args()
    write(args.work, args.out, f32=args.f32)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
