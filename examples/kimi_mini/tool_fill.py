"""What stands in the questions of tool conversations, and what the tools return."""

import json
import random

import tool_kinds as kinds
import tool_words as lists
from corpus import Entry
from tokenizer import Tokenizer
from tool_kinds import Filling, Kind, Slot

HELD_OUT_DIGIT = "7"  # sums and products that end in it are held out
STARTS = (
    "b", "br", "c", "d", "dr", "f", "g", "gl", "h", "j", "k", "l", "m", "n",
    "p", "pr", "qu", "r", "s", "st", "t", "tr", "v", "w", "z", "sh", "th",
)  # fmt: skip
ENDS = ("", "", "n", "r", "l", "s", "m", "x")
TAILS = ("", "", "ia", "ton", "burg", "o", "a")


class Filler:
    """Draws values and results; with `held_out` the values that training never sees."""

    def __init__(self, tokenizer: Tokenizer, entries: list[Entry], *, held_out: bool) -> None:
        """Words of the vocabulary, and the terms and answers of questions.txt, go in, too."""
        self.entries = entries
        self.held_out = held_out
        secret = {w for t in lists.HELD_OUT_TERMS for w in t.split()}
        words = (tokenizer.decode([i])[1:] for i in tokenizer.words)
        self.words = [w for w in words if w not in secret]

    def values(self, rng: random.Random, kind: Kind) -> list[str]:
        """What fills the slots, as it stands in the question."""
        while True:
            values = [self._slot(rng, slot) for slot in kind.slots]
            if not kind.calculates:
                return values
            held = _calculated(kind, values)[-1] == HELD_OUT_DIGIT
            if held == self.held_out:
                return values

    def _slot(self, rng: random.Random, slot: Slot) -> str:
        known: dict[Filling, tuple[tuple[str, ...], tuple[str, ...]]] = {
            "place": (lists.PLACES, lists.HELD_OUT_PLACES),
            "term": (lists.TERMS, lists.HELD_OUT_TERMS),
        }
        pick = rng.random()
        if slot.filling == "number":
            top = rng.choice((9, 20, 99, 99, 999, 9999, 99999))
            return str(rng.randint(0, top) if pick > 0.06 else round(rng.random() * top, 1))
        usual, held_out = known[slot.filling]
        if self.held_out:
            return rng.choice(held_out)
        if pick < 0.4:
            return rng.choice(usual)
        if slot.filling == "place":
            return _made_up(rng) if pick < 0.8 else rng.choice(self.words).capitalize()
        if pick < 0.5:
            return rng.choice(rng.choice([e for e in self.entries if e.terms]).terms)
        if pick < 0.7:
            word = _made_up(rng)
            return word if rng.random() < 0.5 else word.lower()
        return " ".join(rng.choices(self.words, k=rng.choice((1, 1, 1, 2))))

    def result(self, rng: random.Random, kind: Kind, values: list[str]) -> tuple[str, str]:
        """What the tool returns, and how the answer says it."""
        if rng.random() < 0.05:
            error = rng.choice(lists.ERRORS)
            return f"error: {error}", error
        as_json = rng.random() < 0.25
        sky, degrees = rng.choice(lists.SKIES), rng.randint(-15, 38)
        if kind is kinds.WEATHER:
            if as_json:
                sky_name = rng.choice(("sky", "condition", "weather"))
                fields = {"temperature": degrees, sky_name: sky}
                return json.dumps(fields), f"temperature {degrees}, {sky_name} {sky}"
            text = rng.choice(
                (f"{sky}, {degrees} degrees", f"{sky}, {degrees} C", f"{degrees} degrees", sky,
                 f"{degrees} degrees and {sky}", f"{sky}, {degrees} °C")
            )  # fmt: skip
        elif kind in (kinds.TIME, kinds.NOW):
            text = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        elif kind.calculates:
            text = _calculated(kind, values)
            if as_json:
                return f'{{"{rng.choice(("result", "sum", "value"))}": {text}}}', text
        else:
            return self._sentence(rng, values[0])
        if as_json:
            return json.dumps({rng.choice(("result", "value", "answer")): text}), text
        return text, text

    def _sentence(self, rng: random.Random, about: str) -> tuple[str, str]:
        """A line of prose, said as it is."""
        pick = rng.random()
        words = [w.lower() for w in rng.choices(self.words, k=6)]
        if pick < 0.3:
            entry = rng.choice([e for e in self.entries if e.terms])
            text = rng.choice(entry.answers).split(". ")[0].removesuffix(".") + "."
        elif pick < 0.6:
            text = f"A {words[0]} {words[1]} with {words[2]} {words[3]}."
        elif pick < 0.8:
            text = f"{about[0].upper()}{about[1:]} is a {words[0]} {words[1]}."
        else:
            text = f"{' '.join(words).capitalize()}."
        return text, text


def _calculated(kind: Kind, values: list[str]) -> str:
    a, b = map(json.loads, values)
    result = a + b if "+" in kind.topic else a * b
    return str(result if isinstance(result, int) else round(result, 2))


def _made_up(rng: random.Random) -> str:
    """A word that does not exist."""
    parts = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        parts.append(rng.choice(STARTS) + rng.choice("aeiou") + rng.choice(ENDS))
    return "".join(parts).capitalize() + rng.choice(TAILS)
