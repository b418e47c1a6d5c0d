"""Judge kimi-mini: `python evaluate.py WORK_DIR [FILE.gguf]`.

Without a file the checkpoint is read, with one the file's tensors, dequantised. Prints the
perplexity of the held-out chapters, the share of held-out questions answered word for word
(greedily, thinking and instant), and with --show a few answers.
"""

import argparse
import math
from pathlib import Path

import torch
from corpus import Chats, read_chapters, read_entries
from model import Mini, MiniConfig
from read_gguf import read_state
from tokenizer import Tokenizer
from train import held_out_loss, sample

PLAIN = ("In the beginning", "And it came to pass", "Blessed are", "The LORD said unto")


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
    model.load_state_dict(read_state(args.file, config) if args.file else saved["model"])
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
