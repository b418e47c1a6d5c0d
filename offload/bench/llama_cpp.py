"""llama.cpp through llama-cpp-python's low-level functions, timed without Python in the loop."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from offload.errors import DeviceError

BATCH = 512
clock = time.perf_counter
# The last node of each part of a layer, by the names llama.cpp gives its graph. The two additions
# after the shared expert fall to the next layer's attention: every end makes all threads wait.
ENDS = {
    "ffn_inp": "attention",
    "ffn_moe_weights_scaled": "router",
    "ffn_moe_out": "routed",
    "ffn_shexp": "shared",
    "result_output": "head",
}


_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_errors: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _note_errors(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """llama.cpp keeps this pointer for good, hence a module attribute."""
    del user_data
    if level == _ERROR_LEVEL:
        _errors[:] = [*_errors[-4:], text.decode("utf-8", "replace").strip()]


def _failed(what: str) -> DeviceError:
    said = f" ({'; '.join(_errors)})" if _errors else ""
    return DeviceError(f"llama.cpp {what}{said}; leave --compare out")


def model_params() -> Any:
    """llama.cpp's defaults, on the CPU; where it was built with AMX kernels, no repacked weights.

    For AMX it re-arranges k_b and v_b, too, then finds that it cannot multiply them with
    activations in another order than they lie in, and aborts the process with
    `GGML_ASSERT(*cur_backend_id != -1)`; if that is avoided, its tiles are not configured when gcc
    has compiled it, and it ends with an illegal instruction (llama-cpp-python 0.3.36, gcc 12; see
    github.com/ggml-org/llama.cpp/pull/26954). Its users have --no-repack, or a build without AMX,
    which is what a fresh `make venv` makes.
    """
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = b"AMX_INT8 = 1" not in llama_cpp.llama_print_system_info()
    return params


class LlamaModel:
    """A loaded file. llama.cpp's own defaults, but for threads, context and `model_params`.

    repack: whether it may copy weights into memory of its own, where it does so.
    """

    def __init__(self, path: Path, threads: int, *, repack: bool = True) -> None:
        llama_cpp.llama_log_set(_note_errors, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.threads = threads
        params = model_params()
        self._why_not = "as its AMX kernels abort on MLA"
        if not repack:
            params.use_extra_bufts = False
            self._why_not = "as repacked copies are not in the mapped file"
        self._repacks = params.use_extra_bufts
        self.pointer: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise _failed(f"cannot load {path}")

    @property
    def about(self) -> str:
        """What was compared with."""
        settings, weights = "its default settings", "weights repacked at load where it does so, "
        if not self._repacks:
            settings += f" but for --no-repack, {self._why_not}"
            weights = ""
        return (
            f"llama.cpp: llama-cpp-python {llama_cpp.__version__}, {self.threads} threads, "
            f"{settings} (mapped file, {weights}automatic flash attention, f16 cache), "
            "called through its C interface"
        )

    def close(self) -> None:
        """Free the model; contexts first."""
        if self.pointer:
            llama_cpp.llama_model_free(self.pointer)
        self.pointer = None


class LlamaContext:
    """A KV cache and a graph. timed: collect seconds per part in `parts` while decoding.

    context: tokens of each of its sequences; length: those that they have, all as many.

    llama.cpp's scheduler asks for each node whether its end is wanted, then computes up to it and
    reports it; a part's time is from the last question to the report, so that questions, which are
    Python, do not count.
    """

    def __init__(
        self, model: LlamaModel, context: int, *, timed: bool = False, sequences: int = 1
    ) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = min(BATCH, context * sequences)
        params.n_threads = params.n_threads_batch = model.threads
        self.length = 0
        self.parts: list[tuple[str, float]] = []
        self.stop_after = ""  # a part: its first end ends the computation
        self._began, self._ended = 0.0, ""
        self._name: Any = _node_name()
        if timed:
            self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._node)
            params.cb_eval = self._callback
        self.pointer: Any = llama_cpp.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            of = f" for each of {sequences} sequences" * (sequences > 1)
            raise _failed(f"refuses a context of {context:,} tokens{of}")
        self._memory = llama_cpp.llama_get_memory(self.pointer)
        self._sequences = sequences
        self._batch: Any = llama_cpp.llama_batch_init(sequences, 0, 1)

    def _node(self, tensor: int, ask: bool, _data: Any) -> bool:
        now = clock()
        if not ask:
            self.parts.append((self._ended, now - self._began))
            return self._ended != self.stop_after
        name = self._name(tensor).partition(b"-")[0].decode()
        wanted = name in ENDS
        if wanted:
            self._ended = ENDS[name]
            self._began = clock()
        return wanted

    def run(self, ids: np.ndarray) -> float:
        """Append tokens to the first sequence; seconds until the logits of the last are there."""
        tokens = np.ascontiguousarray(ids, np.int32)
        began = clock()
        for i in range(0, len(tokens), BATCH):
            part = tokens[i : i + BATCH]
            pointer = part.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token))
            self._decode(llama_cpp.llama_batch_get_one(pointer, len(part)))
        llama_cpp.llama_synchronize(self.pointer)
        seconds = clock() - began
        self.length += len(tokens)
        return seconds

    def step(self, ids: np.ndarray) -> float:
        """Append one token to every sequence, in one batch; seconds until all logits are there."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids.tolist()):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self.length, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, i
        began = clock()
        self._decode(batch)
        llama_cpp.llama_synchronize(self.pointer)
        seconds = clock() - began
        self.length += 1
        return seconds

    def _decode(self, batch: Any) -> None:
        code = llama_cpp.llama_decode(self.pointer, batch)
        if code:
            raise _failed(f"stopped with code {code} after {self.length} tokens")

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        if length < self.length:
            for sequence in range(self._sequences):
                llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)
            self.length = length

    def fill(self, ids: np.ndarray) -> None:
        """Have exactly these tokens' number in every sequence; keeps what is there."""
        self.truncate(len(ids))
        if self.length == len(ids):
            return
        self.run(ids[self.length :])
        for sequence in range(1, self._sequences):
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, 0, -1)
            llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def copy_from(self, other: LlamaContext) -> None:
        """Take over the first sequence of another context with as many, in every one of this."""
        self.truncate(0)
        if not other.length:
            return
        size = llama_cpp.llama_state_seq_get_size(other.pointer, 0)
        room = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(other.pointer, room, size, 0)
        for sequence in range(self._sequences):
            if not llama_cpp.llama_state_seq_set_data(self.pointer, room, size, sequence):
                raise _failed("cannot copy its own cache")
        self.length = other.length

    def close(self) -> None:
        """Free the context."""
        if self.pointer:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self.pointer)
        self.pointer = None


def _node_name() -> Any:
    name = ctypes.CDLL(llama_cpp.llama_cpp._lib._name).ggml_get_name
    name.argtypes, name.restype = [ctypes.c_void_p], ctypes.c_char_p
    return name
