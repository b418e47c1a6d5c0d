"""The process that runs llama.cpp's vocabulary code: the only user of llama-cpp-python at run time.

That code aborts, hangs or grows on vocabularies it did not expect, so it never runs in the process
of the user (`offload.llama_vocab` is the other side). `vocab_only` reads the header of the file: no
weights, no device, no context.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import struct
import sys
import types
from array import array
from typing import Any

from offload.child_frames import Frame
from offload.child_loop import serve

MEMORY_BYTES = 3 << 30  # a vocabulary of 260,000 tokens takes 0.2 GiB, a prompt of 10 MB as much
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
EOG, IS_CONTROL = 1, 2  # flags of a token


def main() -> None:
    """Serve one vocabulary: open, encode, decode."""
    serve(_Vocabulary(_llama_cpp()).answer, memory_bytes=MEMORY_BYTES)


def _llama_cpp() -> Any:
    # its __init__ imports numpy and jinja2 for what is not used here, half of the time to start
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("llama-cpp-python is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


class _Vocabulary:
    """Answers of one process; `open` comes first, once."""

    def __init__(self, llama_cpp: Any) -> None:
        self._lib = llama_cpp
        self._said: list[str] = []
        # llama.cpp keeps this pointer for good
        self._log = llama_cpp.llama_log_callback(self._hear)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))

    def _hear(self, level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        del user_data
        if level == ERROR_LEVEL:
            self._said.append(text.decode("utf-8", "replace"))
            del self._said[:-20]

    def answer(self, request: Frame) -> Frame:
        """What the request's `do` names."""
        do = {"open": self._open, "encode": self._encode, "decode": self._decode}
        return do[request.header["do"]](request)

    def _open(self, request: Frame) -> Frame:
        """body: the path. Answer: n_tokens, bos, add_bos; per token a length, flags, the bytes."""
        params = self._lib.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        model = self._lib.llama_model_load_from_file(request.body, params)
        if not model:
            return Frame({"failed": "refused", "said": " ".join("".join(self._said).split())})
        self._vocab = vocab = self._lib.llama_model_get_vocab(model)
        n_tokens = int(self._lib.llama_vocab_n_tokens(vocab))
        header = {
            "n_tokens": n_tokens,
            "bos": int(self._lib.llama_vocab_bos(vocab)),
            "add_bos": bool(self._lib.llama_vocab_get_add_bos(vocab)),
        }
        return Frame(header, self._table(n_tokens) if request.header["table"] else b"")

    def _table(self, n_tokens: int) -> bytes:
        # calls by ctypes, one for each token: nearly all of the time that a start takes longer
        vocab, room = self._vocab, 256
        is_eog, is_control = self._lib.llama_vocab_is_eog, self._lib.llama_vocab_is_control
        to_piece, buffer = self._lib.llama_token_to_piece, ctypes.create_string_buffer(room)
        pieces: list[bytes] = []
        for i in range(n_tokens):
            size = to_piece(vocab, i, buffer, room, 0, False)
            if size < 0:
                room = -size
                buffer = ctypes.create_string_buffer(room)
                size = to_piece(vocab, i, buffer, room, 0, False)
            pieces.append(buffer.raw[:size])
        flags = bytearray(n_tokens)
        for i in range(n_tokens):
            if is_control(vocab, i):
                flags[i] = IS_CONTROL
            if is_eog(vocab, i):
                flags[i] |= EOG
        return struct.pack(f"<{n_tokens}I", *map(len, pieces)) + flags + b"".join(pieces)

    def _encode(self, request: Frame) -> Frame:
        """body: UTF-8; special. Answer: int32 ids."""
        data, special = request.body, request.header["special"]
        room = len(data) + 16  # one token per byte, and a space put in front
        while True:
            ids = (self._lib.llama_token * room)()
            count = self._lib.llama_tokenize(
                self._vocab, data, len(data), ids, room, False, special
            )
            if count >= 0:
                return Frame({}, bytes(memoryview(ids)[:count]))
            room = -count

    def _decode(self, request: Frame) -> Frame:
        """body: int32 ids. Answer: bytes, without the space that was put in front."""
        ids = array("i", request.body)
        given = (self._lib.llama_token * len(ids))(*ids)
        room = 16 * len(ids) + 16
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = self._lib.llama_detokenize(
                self._vocab, given, len(ids), buffer, room, False, False
            )
            if size >= 0:
                return Frame({}, buffer.raw[:size])
            room = -size
