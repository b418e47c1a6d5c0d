"""Judge how kimi-mini calls its tool: `python evaluate_tools.py [FILE.gguf]`.

The program itself answers, greedily: every city in ways of asking that training never saw, and
held-out questions that need no tool. A call counts as right if the whole turn is: the section,
name, index and city. The answer to the result must be right word for word.
"""

import argparse
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from corpus import Chats, read_entries
from tokenizer import Tokenizer
from tool_talk import CITIES, HELD_OUT_ASKS, WEATHER, Talk, result
from tool_text import write

import offload

SHIPPED = Path(offload.__file__).parent / "data" / "kimi-mini.gguf"


@dataclass(slots=True)
class Case:
    """A prompt and what should follow; `answers` are as good if no tool is needed."""

    sort: str
    prompt: list[int]
    wanted: str
    answers: list[str] = field(default_factory=list)

    def outcome(self, said: str) -> str:
        """What became of it; what was thought does not count."""
        done, wanted = (text.split("</think>")[-1] for text in (said, self.wanted))
        if done == wanted or done.removesuffix("<|im_end|>") in self.answers:
            return "right"
        if ("<|tool_call" in done) != ("<|tool_call" in wanted):
            return "needless call" if "<|tool_call" in done else "no call"
        return "other words" if "<|tool_call" not in done else "wrong call"


def target(talk: Talk, chats: Chats, turn: int) -> tuple[list[int], str]:
    """The prompt before an assistant turn, and the text that should follow."""
    before = Talk(talk.tools, talk.thinking, talk.messages[:turn])
    upto = Talk(talk.tools, talk.thinking, talk.messages[: turn + 1])
    prompt, _ = write(before, chats, answer=False)
    return prompt, chats.tok.decode(write(upto, chats)[0][len(prompt) :])


def draw_cases(chats: Chats) -> list[Case]:
    """Everything that is asked, thinking and instant."""
    rng = random.Random(1)
    cases = []
    for thinking in (False, True):
        mode = "thinking" if thinking else "instant"
        for question in HELD_OUT_ASKS:
            for city in CITIES:
                talk = Talk([WEATHER], thinking)
                talk.ask(question, city, result(rng))
                cases.append(Case(f"call, {mode}", *target(talk, chats, 1)))
                cases.append(Case(f"answer to a result, {mode}", *target(talk, chats, 3)))
        for question, entry in chats.held_out():
            talk = Talk([WEATHER], thinking)
            talk.say(question, entry.answers[0])
            sort = f"question without need, {mode}"
            cases.append(Case(sort, *target(talk, chats, 1), entry.answers))
    return cases


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=SHIPPED, help="GGUF file to judge")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print what was wrong")
    args = parser.parse_args()
    chats = Chats(Tokenizer.of_gguf(args.file), read_entries())
    cases = draw_cases(chats)
    tally: Counter[tuple[str, str]] = Counter()
    with offload.load(args.file, threads=args.threads) as engine:
        prompts = [case.prompt for case in cases]
        for done in engine.batch(prompts, temperature=0, max_tokens=120):
            case = cases[done.index]
            said = chats.tok.decode(done.ids)
            outcome = case.outcome(said)
            tally[case.sort, outcome] += 1
            if args.show and outcome != "right":
                print(f"{case.sort}: {outcome}\n  wanted {case.wanted!r}\n  said   {said!r}")
    for sort in sorted({sort for sort, _ in tally}):
        found = {what: n for (s, what), n in tally.items() if s == sort}
        total = sum(found.values())
        print(f"{sort}: {found.pop('right', 0)} of {total}", found)


if __name__ == "__main__":
    main()
