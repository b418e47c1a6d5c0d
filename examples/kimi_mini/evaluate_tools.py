"""Judge how kimi-mini calls tools: `python evaluate_tools.py [FILE.gguf] --talks 200`.

The program itself answers, greedily: questions with values and ways of asking that training
never saw, one to three tools offered. A call counts as right if the whole turn is: the section,
each name, index and argument. The answer to the result must be right word for word.
"""

import argparse
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from corpus import Chats, read_entries
from tokenizer import Tokenizer
from tool_talk import Talks
from tool_text import Talk, write

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


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=SHIPPED, help="GGUF file to judge")
    parser.add_argument("--talks", type=int, default=200, help="of each sort")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print what was wrong")
    args = parser.parse_args()
    chats = Chats(Tokenizer.of_gguf(args.file), read_entries())
    talks = Talks(chats, held_out=True)
    rng = random.Random(args.seed)
    cases: list[Case] = []
    questions = list(chats.held_out())
    for number in range(args.talks):
        thinking = number % 2 == 1
        mode = "thinking" if thinking else "instant"
        talk = talks.one(rng, thinking=thinking)
        calls = len(talk.messages[1]["tool_calls"])
        cases.append(Case(f"{calls} call{'s' * (calls > 1)}, {mode}", *target(talk, chats, 1)))
        last = len(talk.messages) - 1
        cases.append(Case(f"answer to a result, {mode}", *target(talk, chats, last)))
        question, entry = questions[number % len(questions)]
        talk = talks.none(rng, question, entry.answers[0], thinking=thinking)
        cases.append(Case(f"question without need, {mode}", *target(talk, chats, 1), entry.answers))
    tally: Counter[tuple[str, str]] = Counter()
    with offload.load(args.file, threads=args.threads) as engine:
        prompts = [case.prompt for case in cases]
        for done in engine.batch(prompts, temperature=0, max_tokens=300):
            case = cases[done.index]
            said = chats.tok.decode(done.ids)
            outcome = case.outcome(said)
            tally[case.sort, outcome] += 1
            if args.show and outcome != "right":
                print(f"{case.sort}: {outcome}\n  wanted {case.wanted!r}\n  said   {said!r}")
    for sort in sorted({sort for sort, _ in tally}):
        found = {what: n for (s, what), n in tally.items() if s == sort}
        print(
            f"{sort}: {found.pop('right', 0)} of {sum(found.values()) + tally[sort, 'right']}",
            found,
        )


if __name__ == "__main__":
    main()
