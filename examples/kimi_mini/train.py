"""Train kimi-mini: `python train.py WORK_DIR --bible bible.txt`.

Everything that training needs to go on after a stop (weights, optimiser state, random
state, step) is in WORK_DIR/last.pt; Ctrl-C or SIGTERM finishes the step and saves, the same
command resumes. The learning
rate warms up, stays and then falls linearly over the last 40 % of the steps, so --steps may
be changed on resuming as long as the fall has not begun. The share of questions and answers
rises from one third to 60 % when it falls. `--tiny --steps 3` is a smoke test.

`--from` goes on from a finished file with a fresh optimiser and a rate that falls from the start;
its routed experts stay as they are (README.md: the tool).
"""

import argparse
import math
import random
import signal
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from batches import Batches, Kind
from corpus import Chats, Entry, read_chapters, read_entries
from looking import looking_loss, watch
from model import TINY, Mini, MiniConfig
from read_gguf import read_state
from tokenizer import Tokenizer, train
from tool_talk import CITIES, HELD_OUT_ASKS, WEATHER, Talk, result
from tool_text import write
from torch import Tensor, nn

BIAS_STEP = 2e-3  # selection bias moved per step towards an even load
SAVE_SECONDS = 180.0
GUIDE = 0.3  # weight of looking.looking_loss
SAMPLE = ("In the beginning", "What is a hot expert?", "Who are you?")


class Muon:
    """Momentum with orthogonalised updates for matrices (Jordan et al., 2024).

    The update is scaled to a root mean square of 0.2, so that it shares AdamW's rate.
    """

    def __init__(self, params: list[nn.Parameter]) -> None:
        """Momentum buffers start at zero."""
        self.params = params
        self.momentum = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, rate: float, decay: float) -> None:
        """One update from the gradients."""
        for p, m in zip(self.params, self.momentum, strict=True):
            assert p.grad is not None
            m.lerp_(p.grad, 0.05)
            g = p.grad.lerp(m, 0.95)
            tall = g.shape[0] > g.shape[1]
            x = (g.t() if tall else g).bfloat16()
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.t()
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            update = (x.t() if tall else x).float() * 0.2 * max(g.shape) ** 0.5
            p.mul_(1 - rate * decay).add_(update, alpha=-rate)


def split_params(model: Mini) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Plain matrices for Muon; experts, embeddings, router and norms for AdamW."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        plain = p.ndim == 2 and not name.endswith(("embed", "head", "router"))
        (matrices if plain else others).append(p)
    return matrices, others


def rate_at(progress: float, step: int, peak: float, warm_up: int) -> float:
    """Warm-up, plateau, linear fall from 60 % of the run to a twentieth."""
    fall = 1.0 if progress < 0.6 else 1 - 0.95 * (progress - 0.6) / 0.4
    return peak * min(1.0, (step + 1) / warm_up) * fall


def weighted_loss(model: Mini, ids: Tensor, weights: Tensor, docs: Tensor | None) -> Tensor:
    """Mean cross-entropy in nats over the targets with weight."""
    hidden = model(ids[:, :-1], docs).flatten(0, 1)
    target, weight = ids[:, 1:].flatten(), weights[:, 1:].flatten()
    keep = weight.nonzero().squeeze(1)
    logits = F.linear(hidden[keep], model.head.to(hidden.dtype)).float()
    losses = F.cross_entropy(logits, target[keep], reduction="none")
    return (losses * weight[keep]).sum() / weight[keep].sum()


@torch.no_grad()
def held_out_loss(model: Mini, tokenizer: Tokenizer, chapters: list[str], length: int) -> float:
    """Mean loss in nats per token of held-out chapters, read in windows of `length`."""
    end = tokenizer.special["[EOS]"]
    total, count = 0.0, 0
    for text in chapters:
        ids = [*tokenizer.encode(text), end]
        for start in range(0, len(ids) - 1, length):
            row = torch.tensor([ids[start : start + length + 1]])
            loss = weighted_loss(model, row, torch.ones_like(row, dtype=torch.float32), None)
            total += loss.item() * (row.shape[1] - 1)
            count += row.shape[1] - 1
    return total / count


@torch.no_grad()
def sample(
    model: Mini, ids: list[int], tokens: int, stop: set[int], heat: float = 0.0
) -> list[int]:
    """Continue `ids`; greedy at heat 0, otherwise at that temperature."""
    out: list[int] = []
    for _ in range(tokens):
        logits = model.logits(torch.tensor([ids + out]))[0, -1]
        if heat > 0:
            out.append(int(torch.multinomial(torch.softmax(logits / heat, -1), 1)))
        else:
            out.append(int(logits.argmax()))
        if out[-1] in stop:
            break
    return out


@torch.no_grad()
def judge(model: Mini, chats: Chats) -> str:
    """Held-out ways of asking in all cities: greedy calls and answers that are right."""
    special, rng = chats.tok.special, random.Random(1)
    found: Counter[str] = Counter()
    for thinking in (False, True):
        talks = []
        for number, city in enumerate(CITIES):
            talk = Talk([WEATHER], thinking)
            talk.ask(HELD_OUT_ASKS[number % 2], city, result(rng))
            talks.append(write(talk, chats))
        size = max(len(ids) for ids, _ in talks)
        rows = [ids + [special["[PAD]"]] * (size - len(ids)) for ids, _ in talks]
        for (ids, weights), line in zip(talks, model.logits(torch.tensor(rows)), strict=True):
            said = line.argmax(-1).tolist()
            wrong = [i for i in range(len(ids)) if weights[i] == 1.0 and said[i - 1] != ids[i]]
            end = ids.index(special["<|tool_calls_section_end|>"])
            found["calls"] += not any(i <= end for i in wrong)
            found["answers"] += not any(i > end for i in wrong)
    return f"of {2 * len(CITIES)} talks right: {dict(found)}"


def show(model: Mini, tokenizer: Tokenizer, chats: Chats) -> None:
    """Print a few greedy continuations."""
    stop = {tokenizer.special["[EOS]"], tokenizer.special["<|im_end|>"]}
    model.refresh()
    for number, text in enumerate(SAMPLE):
        ids = chats.prompt([text], thinking=False) if number else tokenizer.encode(text)
        print(f"  {text} -> {tokenizer.decode(sample(model, ids, 40, stop))!r}", flush=True)


def main() -> None:
    """Train kimi-mini, with checkpoints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory of tokenizer.json and last.pt")
    parser.add_argument("--bible", type=Path, help="text from corpus.py (default WORK/bible.txt)")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=4096, help="per step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from", type=Path, dest="start", help="a GGUF file to go on from")
    parser.add_argument("--tools", type=float, default=0.0, help="share of rows with a tool")
    parser.add_argument("--tiny", action="store_true", help="a toy, to try the script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    args.work.mkdir(parents=True, exist_ok=True)
    chapters, held = read_chapters(args.bible or args.work / "bible.txt")
    if args.tiny:
        chapters, held, args.tokens = chapters[:20], held[:1], 512
    entries = read_entries()
    if args.start:
        Tokenizer.of_gguf(args.start).save(args.work / "tokenizer.json")
    tokenizer = make_tokenizer(args.work / "tokenizer.json", chapters, entries)
    chats = Chats(tokenizer, entries)
    config = TINY if args.tiny else MiniConfig()
    model = Mini(config, torch.bfloat16)
    if args.start:
        model.load_state_dict(read_state(args.start, config))
        watch(model)
        for moe in model.moe_layers():
            moe.gate_up.requires_grad_(False)
            moe.down.requires_grad_(False)
    matrices, others = split_params(model)
    muon = Muon(matrices)
    decayed = [p for p in others if p.ndim == 3]
    plain = [p for p in others if p.ndim != 3]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.rate, betas=(0.9, 0.95), eps=1e-10, fused=True,
    )  # fmt: skip
    batches = Batches(tokenizer, chats, chapters)
    rng = random.Random(1)
    last = args.work / "last.pt"
    step = tokens = 0
    if last.exists():
        saved = torch.load(last, weights_only=False)
        model.load_state_dict(saved["model"])
        adam.load_state_dict(saved["adam"])
        muon.momentum = saved["muon"]
        rng.setstate(saved["rng"])
        torch.set_rng_state(saved["torch_rng"])
        batches.load(saved["data"])
        step, tokens = saved["step"], saved["tokens"]
        print(f"resumed at step {step}", flush=True)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, "
        f"{len(batches.stream):,} Bible tokens, {len(entries)} entries",
        flush=True,
    )

    def save() -> None:
        part = last.with_suffix(".part")
        torch.save(
            {
                "config": config.to_dict(), "model": model.state_dict(),
                "adam": adam.state_dict(), "muon": muon.momentum, "rng": rng.getstate(),
                "torch_rng": torch.get_rng_state(), "data": batches.state(),
                "step": step, "tokens": tokens,
            },
            part,
        )  # fmt: skip
        part.replace(last)

    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: stopping.append(received))
    started = saved_at = time.monotonic()
    mean = math.nan
    while step < args.steps and not stopping:
        progress = step / args.steps
        rate = rate_at(progress, step, args.rate, 40)
        length = 1024 if step % 4 == 3 else 256
        share = 0.35 if progress < 0.6 else 0.6
        if args.start:
            rate = args.rate * min(1.0, (step + 1) / 10) * (1 - 0.97 * progress)
            length = max(length, 512)
            share = 0.35
        if args.tiny:
            length = 64
        shares: dict[Kind, float] = {"tools": args.tools, "chats": share}
        ids, weights, docs, marks = batches.draw(rng, args.tokens // length, length, shares)
        model.refresh()
        loss = weighted_loss(model, ids, weights, docs[:, :-1])
        looking = torch.zeros(())
        if args.tools:
            looking = looking_loss(model, weights, docs, marks)
        (loss + GUIDE * looking).backward()
        for moe in model.moe_layers():
            moe.collect()
            if not args.start:
                moe.bias += BIAS_STEP * (moe.load.mean() - moe.load).sign()
            moe.load.zero_()
        nn.utils.clip_grad_norm_(others, 1.0)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        muon.step(rate, 0.05)
        model.zero_grad()
        step += 1
        tokens += ids.shape[0] * length
        mean = loss.item() if math.isnan(mean) else 0.9 * mean + 0.1 * loss.item()
        if step % 10 == 0 or step <= 3 or step == args.steps:
            spent = time.monotonic() - started
            print(
                f"step {step} loss {loss.item():.3f} mean {mean:.3f} looking {looking.item():.3f} "
                f"rate {rate:.2e} "
                f"tokens {tokens / 1e6:.2f} M, {spent:.0f} s",
                flush=True,
            )
        if time.monotonic() - saved_at > SAVE_SECONDS or step == args.steps or stopping:
            save()
            saved_at = time.monotonic()
        if args.tools and (step % 25 == 0 or step in (1, args.steps)):
            print(f"  {judge(model, chats)}", flush=True)
        if step % 100 == 0 or step == args.steps:
            model.refresh()
            nats = held_out_loss(model, tokenizer, held[:6], 256)
            print(f"  held-out sample: perplexity {math.exp(nats):.2f}", flush=True)
            show(model, tokenizer, chats)


def make_tokenizer(path: Path, chapters: list[str], entries: list[Entry]) -> Tokenizer:
    """Load the tokenizer, or train it on the chapters and, twelvefold, questions.txt."""
    if path.exists():
        return Tokenizer.load(path)
    texts = [(text, 1) for text in chapters]
    for entry in entries:
        texts += [(t, 12) for t in (*entry.questions, *entry.answers, *entry.terms)]
    tokenizer = train(texts, MiniConfig().vocab)
    tokenizer.save(path)
    return tokenizer


if __name__ == "__main__":
    main()
