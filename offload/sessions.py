"""Engine.save_session and load_session: between KV slots and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offload import session_file
from offload.errors import RequestError
from offload.gguf import GGUFFile
from offload.kv_slots import Slot
from offload.sequence import Sequence
from offload.session_file import Head, SessionFile
from offload.steps import Steps


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
            layers = [] if slot is None else steps.model.kv.read(slot.number, n)
            model, tokenizer = self._known_digests()
            head = Head(
                name=self._name,
                model=model,
                tokenizer=tokenizer,
                kind=steps.model.kv.kind,
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
