"""PTX as text -> instructions, for ptx_machine.py."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

REGISTER = {
    "pred": "pred", "b16": "u16", "u16": "u16", "s16": "u16", "b32": "u32", "u32": "u32",
    "s32": "u32", "f32": "f32", "b64": "u64", "u64": "u64", "s64": "u64", "f64": "f64",
}  # fmt: skip
TABLE = r"\.global\s+\.align\s+16\s+\.b(\d+)\s+([\w$]+)\[\d+\]\s*=\s*\{([^}]*)\}"

# a block of inline assembly, an instruction with or without lists in braces, a label, a brace
STATEMENT = r"\s*\{\s*\.reg[^{}]*\}|[^;{}]*(?:\{[^{}]*\}[^;{}]*)+;|[\w$]+:|[^;{}]+;|[{}]"


@dataclass(slots=True)
class Instruction:
    """`@guard op.p0.p1 operands`; guard: (register, whether it must be false)."""

    op: str
    parts: list[str]
    operands: list[str]
    guard: tuple[str, bool] | None
    text: str


@dataclass(slots=True)
class Program:
    """One kernel. kinds: of registers, by name or (declared with a count) by prefix.

    tables: the module's constants as bytes, at multiples of 16.
    """

    name: str
    params: list[str]
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    threads: int = 1024

    def kind(self, register: str) -> str:
        """pred, u16, u32, u64 or f32."""
        found = self.kinds.get(register) or self.kinds.get(register.rstrip("0123456789"))
        if found is None:
            raise KeyError(f"{register}: no register")
        return found


def parse(text: str) -> Program:
    """The only kernel of a module."""
    text = re.sub(r"//[^\n]*", "", text)
    head = re.search(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text)
    assert head, "no kernel"
    params = re.findall(r"\.param\s+\.\w+\s+([\w$]+)", head[2])
    program = Program(head[1], params)
    for bits, name, numbers in re.findall(TABLE, text[: head.start()]):
        program.tables[name] = _aligned(np.array(numbers.split(","), f"u{int(bits) // 8}"))
    if limit := re.search(r"\.maxntid\s+(\d+)", head[3]):
        program.threads = int(limit[1])
    body = text[head.end() : text.rindex("}")]
    if ".local" in body or ".f64" in body:
        raise ValueError(f"{head[1]} has local memory or float64")
    for statement in re.findall(STATEMENT, body):
        _add(program, " ".join(statement.split()))
    return program


def _aligned(numbers: np.ndarray) -> np.ndarray:
    room = np.empty(numbers.nbytes + 16, np.uint8)
    start = -room.ctypes.data % 16
    room[start : start + numbers.nbytes] = numbers.view(np.uint8)
    return room[start : start + numbers.nbytes]


def _add(program: Program, statement: str) -> None:
    while label := re.match(r"([\w$]+):\s*", statement):
        program.labels[label[1]] = len(program.code)
        statement = statement[label.end() :]
    statement = statement.rstrip(";").strip()
    if statement.startswith("{ .reg"):  # inline assembly with registers of its own
        for part in statement.strip("{}").split(";"):
            _add(program, part.strip())
        return
    if statement in ("", "{", "}") or statement.startswith(".pragma"):
        return
    if reg := re.match(r"\.reg \.(\w+) (.*)", statement):
        for name in reg[2].split(","):
            program.kinds[re.sub(r"<\d+>", "", name.strip())] = REGISTER[reg[1]]
        return
    guard = None
    if found := re.match(r"@(!?)([%\w$]+)\s+", statement):
        guard = (found[2], found[1] == "!")
        statement = statement[found.end() :]
    op, _, rest = statement.partition(" ")
    name, *parts = op.split(".")
    operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", rest)]
    program.code.append(Instruction(name, parts, [o for o in operands if o], guard, statement))
