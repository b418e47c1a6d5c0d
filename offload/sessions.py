"""Engine.save_session and load_session: between KV slots and files; one of all that is in slots."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offload import session_file
from offload.errors import RequestError
from offload.gguf import GGUFFile
from offload.kv_slots import Slot, common
from offload.sequence import Sequence
from offload.session_file import Head, SessionFile
from offload.steps import Steps

SUFFIX = ".kv"  # of files of `Sessions.save_idle`


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What was loaded. ids: the tokens whose rows are there; note: as it was given to save."""

    ids: tuple[int, ...]
    note: str


class Sessions:
    """Those of one engine."""

    def __init__(self, file: GGUFFile, name: str, steps: Steps) -> None:
        self._name = name
        self._file = file
        self._steps = steps
        self._digests: tuple[str, str] | None = None

    def save(self, path: Path, sequence: Sequence | None, note: str) -> None:
        """Write the rows of a sequence, those that there are, and the note."""
        steps = self._steps
        with steps.alone():
            steps.model.check_files()  # rows of zeros are nobody's
            steps.tidy()
            slot, n = None, 0
            if sequence is not None:
                slot, n = steps.slots.longest(sequence.known, sequence.expanded)
            if slot is None and not note:
                raise RequestError(
                    "there is nothing to save in a session: no answer was begun, or its part of "
                    "the KV cache was needed for others"
                )
            self._write(path, slot, n, note)

    @property
    def label(self) -> str:
        """Short, of the model, its tokenizer and the kind of rows: whose files can be loaded."""
        return _digest(*self._known_digests(), self._steps.model.kv.kind)

    @property
    def free_rows(self) -> int:
        """Rows of the KV cache that nothing takes."""
        with self._steps.alone():
            self._steps.tidy()
            return self._steps.slots.free_rows

    def idle(self) -> list[str]:
        """Names of what is in slots that no answer has, the last used last.

        The same tokens in the same forms have the same name. What begins another one is left out.
        """
        with self._steps.alone():
            return list(self._idle())

    def save_idle(self, folder: Path, saved: Collection[str]) -> str | None:
        """Write one of `idle` that is not among `saved`, under its name; None: all are.

        The last used first. One at a time, so that steps can be taken between two.
        """
        with self._steps.alone():
            found = self._idle()
            name = next((name for name in reversed(found) if name not in saved), None)
            if name is not None:
                self._steps.model.check_files()
                slot = found[name]
                self._write(folder / name, slot, slot.length, "")
            return name

    def _idle(self) -> dict[str, Slot]:
        self._steps.tidy()
        idle, label = self._steps.slots.idle(), self.label
        kept = [
            slot
            for i, slot in enumerate(idle)
            if not any(_begins(slot, other, or_is=j > i) for j, other in enumerate(idle) if j != i)
        ]
        return {
            f"{label}-{_digest(slot.ids.tobytes(), slot.expanded)}{SUFFIX}": slot for slot in kept
        }

    def _write(self, path: Path, slot: Slot | None, n: int, note: str) -> None:
        """The first n rows of a slot, or none, and the note. By the holder."""
        kv = self._steps.model.kv
        layers = [] if slot is None else kv.read(slot.number, n)
        model, tokenizer = self._known_digests()
        head = Head(
            name=self._name,
            model=model,
            tokenizer=tokenizer,
            kind=kv.kind,
            row_bytes=[rows.shape[1] for rows in layers],
            ids=[] if slot is None else slot.ids[:n].tolist(),
            expanded=() if slot is None else slot.expanded,
            note=note,
        )
        session_file.save(path, head, layers)

    def load(self, path: Path) -> Session:
        """Bring rows back, for whatever prompt begins with their tokens."""
        with session_file.opened(path) as file, self._steps.alone():
            self._steps.tidy()
            head = file.head
            self._check(file)
            if head.ids:
                slot = self._steps.slots.adopt(np.array(head.ids, np.int64), head.expanded)
                if slot is None:
                    raise file.refuse(
                        f"unfinished answers leave no room for its {len(head.ids):,} tokens; "
                        "load it before they begin"
                    )
                self._fill(slot, file)
            return Session(ids=tuple(head.ids), note=head.note)

    def _fill(self, slot: Slot, file: SessionFile) -> None:
        slots = self._steps.slots
        try:
            layers = slots.kv.write(slot.number, len(slot.ids))
            if [rows.shape[1] for rows in layers] != file.head.row_bytes:
                raise file.refuse("its rows are of other sizes than this model's")
            file.read_into(layers)
            slot.length = len(slot.ids)
        finally:  # with nothing valid in it, it is dropped
            slots.release(slot)

    def _check(self, file: SessionFile) -> None:
        head, kv = file.head, self._steps.model.kv
        model, tokenizer = self._known_digests()
        if head.model != model:
            raise file.refuse(f"it is of another model ({head.name or 'without a name'})")
        if head.tokenizer != tokenizer:
            raise file.refuse("it is of the same model with another tokenizer")
        if head.kind != kv.kind:
            raise file.refuse(
                f"its rows are {head.kind}, the KV cache's are {kv.kind}; load with --kv-type "
                f"{head.kind}"
            )
        if len(head.ids) > kv.context:
            raise file.refuse(
                f"it has {len(head.ids):,} tokens, the context holds {kv.context:,}; load with a "
                "larger --context"
            )
        if head.ids and max(head.ids) >= self._steps.model.config.vocab_size:
            raise file.refuse("it holds tokens that the model does not have")

    def _known_digests(self) -> tuple[str, str]:
        if self._digests is None:
            self._digests = session_file.digests(self._file)
        return self._digests


def _begins(slot: Slot, other: Slot, *, or_is: bool) -> bool:
    """Whether the rows of an idle slot are the first ones of another, or all if `or_is`."""
    if slot.length >= other.length + or_is:
        return False
    return common(slot.ids, slot.expanded, other.ids, other.expanded) == slot.length


def _digest(*parts: object) -> str:
    """16 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
