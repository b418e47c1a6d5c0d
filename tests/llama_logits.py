"""The oracle of the model tests: logits by llama.cpp, through llama_cpp's low-level interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as lib

from offload.bench.llama_cpp import model_params

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # codes of the cache's type


@lib.llama_log_callback
def _silent(level: int, text: bytes, user_data: object) -> None:
    """llama.cpp writes pages while loading."""


@cache
def _start() -> None:
    lib.llama_log_set(_silent, None)
    lib.llama_backend_init()


def logits(
    path: Path, ids: Sequence[int] | np.ndarray, kv_type: str = "f32", threads: int = 2
) -> np.ndarray:
    """(n_tokens, n_vocab) float32: all of `ids` in one batch.

    Without flash attention, but for kv_type q8_0, which llama.cpp reads in no other way.
    """
    _start()
    n = len(ids)
    model = lib.llama_model_load_from_file(str(path).encode(), model_params())
    assert model, f"llama.cpp cannot load {path}"
    try:
        params = lib.llama_context_default_params()
        params.n_ctx = max(64, n)
        params.n_batch = n
        params.n_ubatch = min(n, 512)
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = int(kv_type == "q8_0")
        context = lib.llama_init_from_model(model, params)
        assert context, "llama.cpp cannot make a context"
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = int(token), i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            assert lib.llama_decode(context, batch) == 0
            vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
            start = lib.llama_get_logits(context)
            return np.ctypeslib.as_array(start, (n, vocab)).copy()
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)
    finally:
        lib.llama_model_free(model)
