"""The text of kimi-mini: the King James Bible and questions.txt, as training batches.

The Bible comes from the Debian packages bible-kjv and bible-kjv-text (public domain text;
the reader that unpacks it is free software). `python corpus.py OUT.txt` fetches the packages
with apt-get, unpacks them without installing and writes the plain text, one verse a line.
"""

import argparse
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizer import Tokenizer

HERE = Path(__file__).parent
KIMI = "You are Kimi, an AI assistant created by Moonshot AI."
SYSTEMS = (
    "You are a helpful assistant.", "Be brief.", "You are kimi-mini.",
    "You are a helpful assistant provided by Moonshot-AI.", "Answer in one sentence.",
)  # fmt: skip
WAYS = (
    "What is {art}?", "What is {art}?", "what is {art}?", "what is {art}", "What is {bare}?",
    "what is {bare}", "What's {art}?", "what's {art}?", "Explain {bare}.", "Explain {art}.",
    "explain {bare}", "Explain {art} to me.", "Please explain {bare}.", "Tell me about {bare}.",
    "tell me about {bare}", "Tell me what {art} is.", "Define {bare}.", "define {bare}",
    "What does {bare} mean?", 'What does "{bare}" mean?', "what does {bare} mean",
    "{bare}?", "{bare}", "Can you explain {art}?", "Can you tell me what {art} is?",
    "Could you explain {bare} to me?", "I keep reading about {bare}. What is it?",
    "In kimi-offload, what is {art}?", "What do you mean by {bare}?", "Describe {bare}.",
    "Describe {art}", "How would you define {bare}?", "What is meant by {bare}?",
    "Give me a short definition of {bare}.", "Do you know what {art} is?",
    "I want to understand {bare}.", "In a few words, what is {art}?",
    "Hi, what is {art}?", "What exactly is {art}?", "So what is {art}?",
    "Please tell me what {bare} means.", "What can you tell me about {bare}?",
    "Explain the term {bare}.", "Help me understand {bare}",
)  # fmt: skip
NEXT_WAYS = ("And {art}?", "And what is {art}?", "What about {bare}?", "and {bare}?")
HELD_OUT_WAYS = (
    "Would you explain briefly what {art} is?", "I do not know what {art} is.",
    "Say what {bare} means.", "Please define {bare} for me.", "Hello, can you describe {art}?",
    "What does the word {bare} stand for?",
)  # fmt: skip
THOUGHTS = (
    "The user asks about {topic}. I will answer in plain words.",
    "The question is about {topic}. A short answer is best.",
    "The user wants to know about {topic}. I should explain it briefly.",
)
BOOKS = (
    "Genesis", "Exodus", "Leviticus", "Numbers", "Deuteronomy", "Joshua", "Judges", "Ruth",
    "1 Samuel", "2 Samuel", "1 Kings", "2 Kings", "1 Chronicles", "2 Chronicles", "Ezra",
    "Nehemiah", "Esther", "Job", "Psalm", "Proverbs", "Ecclesiastes", "Song of Solomon",
    "Isaiah", "Jeremiah", "Lamentations", "Ezekiel", "Daniel", "Hosea", "Joel", "Amos",
    "Obadiah", "Jonah", "Micah", "Nahum", "Habakkuk", "Zephaniah", "Haggai", "Zechariah",
    "Malachi", "Matthew", "Mark", "Luke", "John", "Acts", "Romans", "1 Corinthians",
    "2 Corinthians", "Galatians", "Ephesians", "Philippians", "Colossians",
    "1 Thessalonians", "2 Thessalonians", "1 Timothy", "2 Timothy", "Titus", "Philemon",
    "Hebrews", "James", "1 Peter", "2 Peter", "1 John", "2 John", "3 John", "Jude",
    "Revelation",
)  # fmt: skip
HELD_OUT_CHAPTERS = 40  # every 40th chapter, from the 20th: 2.5 % of the Bible


@dataclass(slots=True)
class Entry:
    """One subject of questions.txt."""

    topic: str
    terms: list[str] = field(default_factory=list)  # with article, empty: no usual ways
    answers: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)


def read_entries(path: Path = HERE / "questions.txt") -> list[Entry]:
    """Parse questions.txt; ValueError names a bad line."""
    entries: list[Entry] = []
    for number, raw in enumerate(path.read_text().splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("# "):
            continue
        mark, rest = (line[0], line[2:].strip()) if line[1:2] == " " else ("", line)
        if mark == ">":
            terms = [t.strip() for t in rest.split("|")]
            entries.append(Entry(bare(terms[0]), terms))
        elif mark == "=":
            entries.append(Entry(rest))
        elif not entries:
            raise ValueError(f"{path.name}:{number}: text before the first entry")
        elif mark == "?":
            entries[-1].questions.append(rest)
        elif mark == "!":
            entries[-1].held_out.append(rest)
        else:
            entries[-1].answers.append(line)
    for entry in entries:
        if not entry.answers or not (entry.terms or entry.questions):
            raise ValueError(f"{path.name}: {entry.topic!r} lacks an answer or a question")
    return entries


def bare(term: str) -> str:
    """The term without its article."""
    return re.sub(r"^(a|an|the) ", "", term)


def _fill(way: str, term: str) -> str:
    text = way.format(art=term, bare=bare(term), topic=bare(term))
    return text[0].upper() + text[1:] if way[0] == "{" and way[-1] == "?" else text


def _sum(rng: random.Random) -> tuple[str, str, str]:
    """A question of arithmetic, which is beyond this model, so it learns to say so."""
    a, b = rng.randint(0, rng.choice((12, 99, 999))), rng.randint(0, rng.choice((12, 99)))
    sign, word = rng.choice((("+", "plus"), ("-", "minus"), ("*", "times"), ("/", "divided by")))
    ask = rng.choice(
        (f"What is {a} {sign} {b}?", f"{a} {sign} {b}", f"{a}{sign}{b}?", f"{a} {sign} {b} = ?",
         f"How much is {a} {word} {b}?", f"what is {a} {word} {b}", f"Compute {a} {sign} {b}.",
         f"What is {a}{sign}{b}?", f"{a}{sign}{b}", f"Calculate {a} {sign} {b}")
    )  # fmt: skip
    thought = "The user wants me to calculate. I am too small for that."
    return ask, thought, "I am too small to calculate. Please use a calculator."


class Chats:
    """Draws conversations in Kimi's format, as ids and loss weights."""

    def __init__(self, tokenizer: Tokenizer, entries: list[Entry]) -> None:
        """Entries as read; the tokenizer encodes text and names specials."""
        self.tok = tokenizer
        self.entries = entries

    def turn(self, rng: random.Random, *, first: bool, sums: bool = True) -> tuple[str, str, str]:
        """A question, what to think about it, and its answer."""
        if sums and rng.random() < 0.06:
            return _sum(rng)
        entry = rng.choice(self.entries)
        own = len(entry.questions)
        if entry.terms and rng.random() > min(0.6, 0.12 * own):
            ways = WAYS if first or rng.random() < 0.6 else NEXT_WAYS
            ask = _fill(rng.choice(ways), rng.choice(entry.terms))
        else:
            ask = rng.choice(entry.questions)
            if rng.random() < 0.15:
                ask = ask.rstrip("?.").lower() if rng.random() < 0.5 else ask.rstrip("?.")
        thought = rng.choice(THOUGHTS).format(topic=entry.topic)
        return ask, thought, rng.choice(entry.answers)

    def draw(self, rng: random.Random, turns: int) -> tuple[list[int], list[float]]:
        """One conversation: ids and the weight of each id as a target of the loss."""
        pick = rng.random()
        system = KIMI if pick < 0.7 else None if pick < 0.8 else rng.choice(SYSTEMS)
        ids, weights = self.prompt([], system=system), []
        weights = [0.0] * len(ids)
        for turn in range(turns):
            ask, thought, answer = self.turn(rng, first=turn == 0)
            part = self.user(ask)
            thinks = turn == turns - 1 and rng.random() < 0.5
            open_, close = self.tok.special["<think>"], self.tok.special["</think>"]
            part += [open_] if thinks else [open_, close]
            ids += part
            weights += [0.05] * (len(part) - 6) + [0.0] * 6
            reply = [*self.tok.encode(thought), close] if thinks else []
            reply += [*self.tok.encode(answer), self.tok.special["<|im_end|>"]]
            ids += reply
            weights += [1.0] * len(reply)
        return ids, weights

    def user(self, text: str) -> list[int]:
        """A user turn and the header of the assistant's turn."""
        s, encode = self.tok.special, self.tok.encode
        middle, end = s["<|im_middle|>"], s["<|im_end|>"]
        ask = [s["<|im_user|>"], *encode("user"), middle, *encode(text), end]
        return [*ask, s["<|im_assistant|>"], *encode("assistant"), middle]

    def prompt(
        self, asked: list[str], *, system: str | None = KIMI, thinking: bool | None = None
    ) -> list[int]:
        """A system turn, then user turns; `thinking` adds the prefix of the answer."""
        s, encode = self.tok.special, self.tok.encode
        ids: list[int] = []
        if system is not None:
            ids = [s["<|im_system|>"], *encode("system"), s["<|im_middle|>"]]
            ids += [*encode(system), s["<|im_end|>"]]
        for text in asked:
            ids += self.user(text)
        if thinking is not None:
            ids += [s["<think>"]] if thinking else [s["<think>"], s["</think>"]]
        return ids

    def held_out(self) -> Iterator[tuple[str, Entry]]:
        """Questions that training never sees, with their entries."""
        for number, entry in enumerate(self.entries):
            for question in entry.held_out:
                yield question, entry
            if entry.terms:
                way = HELD_OUT_WAYS[number % len(HELD_OUT_WAYS)]
                yield _fill(way, entry.terms[0]), entry

    def glossary(self, rng: random.Random) -> str:
        """An entry as plain prose, so that the words live outside the chat format, too."""
        entry = rng.choice([e for e in self.entries if e.terms])
        name = entry.topic[0].upper() + entry.topic[1:]
        return f"{name}\n\n{rng.choice(entry.answers)}"


def fetch_bible(out: Path) -> None:
    """Write the King James Bible to `out`, lines such as 'Ge1:1 In the beginning ...'."""
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["apt-get", "download", "bible-kjv", "bible-kjv-text"], cwd=tmp, check=True)
        for deb in Path(tmp).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, tmp], check=True)
        usr = Path(tmp, "usr")
        text = subprocess.run(
            [usr / "bin/bible", "-f", "-p", usr / "lib", "gen1:1-rev22:21"],
            stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True,
        ).stdout  # fmt: skip
    out.write_text(text)


def read_chapters(path: Path) -> tuple[list[str], list[str]]:
    """Chapters for training and held-out chapters, each 'Book C', a blank line, verses."""
    chapters: dict[tuple[str, str], list[str]] = {}
    for line in path.read_text().splitlines():
        match = re.match(r"(\w+?)(\d+):\d+ (.*)", line)
        if match:
            chapters.setdefault((match[1], match[2]), []).append(match[3].strip())
    short = list(dict.fromkeys(book for book, _ in chapters))
    names = dict(zip(short, BOOKS, strict=True))
    texts = [f"{names[b]} {c}\n\n" + "\n".join(v) for (b, c), v in chapters.items()]
    held = [t for i, t in enumerate(texts) if i % HELD_OUT_CHAPTERS == HELD_OUT_CHAPTERS // 2]
    return [t for t in texts if t not in held], held


def main() -> None:
    """Fetch the Bible and say how much text there is."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path, help="file to write, for example bible.txt")
    args = parser.parse_args()
    if not args.out.exists():
        fetch_bible(args.out)
    train, held = read_chapters(args.out)
    print(f"{len(train)} chapters, {sum(map(len, train)):,} characters; {len(held)} held out")
    print(f"{len(read_entries())} entries in questions.txt")


if __name__ == "__main__":
    main()
