"""Judge kimi-mini: `python evaluate.py WORK_DIR [FILE.gguf]`.

Without a file the checkpoint is read, with one the file's tensors, dequantised. Prints the
perplexity of the held-out chapters, the share of held-out questions answered word for word
(greedily, thinking and instant), and with --show a few answers.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from corpus import Chats, read_chapters, read_entries
from gguf import GGUFReader, quants
from model import Mini, MiniConfig
from tokenizer import Tokenizer
from torch import Tensor
from train import held_out_loss, sample

PLAIN = ("In the beginning", "And it came to pass", "Blessed are", "The LORD said unto")


def from_gguf(path: Path, c: MiniConfig) -> dict[str, Tensor]:
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


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory of last.pt, tokenizer.json, bible.txt")
    parser.add_argument("file", type=Path, nargs="?", help="GGUF file to judge instead of last.pt")
    parser.add_argument("--questions", type=int, default=1000, help="at most so many")
    parser.add_argument("--chapters", type=int, default=1000, help="at most so many")
    parser.add_argument("--show", action="store_true", help="print the answers")
    parser.add_argument("--heat", type=float, default=0.0, help="temperature, 0 is greedy")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    saved = torch.load(args.work / "last.pt", weights_only=False)
    config = MiniConfig(**saved["config"])
    tokenizer = Tokenizer.load(args.work / "tokenizer.json")
    model = Mini(config)
    model.load_state_dict(from_gguf(args.file, config) if args.file else saved["model"])
    model.requires_grad_(False)
    model.refresh()
    print(f"step {saved['step']}, {saved['tokens'] / 1e6:.2f} M tokens seen")
    _, held = read_chapters(args.work / "bible.txt")
    held = held[: args.chapters]
    if held:
        nats = held_out_loss(model, tokenizer, held, 1024)
        tokens = sum(len(tokenizer.encode(t)) for t in held)
        size = sum(len(t.encode()) for t in held)
        print(
            f"held-out: {len(held)} chapters, {tokens} tokens, perplexity {math.exp(nats):.3f}, "
            f"{nats / math.log(2) * tokens / size:.4f} bits per byte"
        )
    entries = read_entries()
    chats = Chats(tokenizer, entries)
    stop = {tokenizer.special["[EOS]"], tokenizer.special["<|im_end|>"]}
    good = asked = 0
    for number, (question, entry) in enumerate(list(chats.held_out())[: args.questions]):
        prompt = chats.prompt([question], thinking=number % 2 == 1)
        text = tokenizer.decode(sample(model, prompt, 120, stop, args.heat))
        answer = text.removesuffix("<|im_end|>").split("</think>")[-1]
        asked += 1
        good += answer in entry.answers
        if args.show or answer not in entry.answers:
            print(f"{'ok ' if answer in entry.answers else 'BAD'} {question} -> {text}")
    print(f"held-out questions: {good} of {asked} answered word for word")
    if args.show:
        for text in PLAIN:
            more = tokenizer.decode(sample(model, tokenizer.encode(text), 60, stop, 0.7))
            print(f"{text}{more}\n")


if __name__ == "__main__":
    main()
