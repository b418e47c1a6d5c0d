"""Wrong arguments of public calls: one clear line of the project's own errors, never a bare one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from tiny_gguf import TinyModel

import offload
from offload import OffloadError
from offload.messages import Message, ToolCall
from quant.ggml import GGMLType

MODEL = TinyModel(
    layers=2, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=256,
)  # fmt: skip


class Odd:
    """Nothing that anybody expects; not even its repr works."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD = (None, 5, -1, 1.5, float("nan"), 10**5000, True, b"x", "x", [], {}, (), object(), Odd())
ODD_TEXTS = ("", "\0", "\udcff", "x" * 200)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("public") / "tiny.gguf", MODEL)


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[offload.Engine]:
    with offload.load(path, context=64, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def file(path: Path) -> Iterator[offload.GGUFFile]:
    with offload.GGUFFile.open(path) as opened:
        yield opened


def tried(call: Callable[[], Any]) -> Exception | None:
    """Make a call; what it raised, which must be ours and one line."""
    error = None
    try:
        made = call()
        if isinstance(made, Iterator):
            next(made, None)
            made.close()  # type: ignore[attr-defined]
    except OffloadError as exc:
        error = exc
    assert error is None or 0 < len(str(error)) < 2_000
    assert error is None or "\n" not in str(error)
    return error


def call_of(function: Callable[..., Any], name: str, value: object) -> Callable[[], Any]:
    return lambda: function(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "path", "device", "context", "threads", "kv_type", "memory", "experts_layout",
        "pack_budget", "packed_cache", "pin", "chunk", "vram", "wait", "progress",
    ],
)  # fmt: skip
def test_load_takes_odd_values_or_refuses_them(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = 0
    monkeypatch.setattr("offload.readying.compile_kernels", lambda *_: None)
    for value in (*ODD, *ODD_TEXTS, np.zeros(3), np.array("x")):
        if name == "path" and value is None:
            continue
        options: dict[str, Any] = {"path": path, "context": 64, "threads": 1, name: value}
        refused += tried(lambda options=options: offload.load(**options).close()) is not None
    assert refused > 10
    assert not list(tmp_path.glob("[!x]*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": 5}, "the path of the model must be a string or a path, not 5"),
        ({"path": b"x"}, "not b'x'"),
        ({"path": ""}, "the path of the model is empty"),
        ({"pack_budget": float("nan")}, r"--pack-budget nan: GiB, a number in \[0, 1,000,000,000"),
        ({"pack_budget": float("inf")}, "--pack-budget inf"),
        ({"pack_budget": 1e300}, "--pack-budget 1e"),
        ({"pack_budget": -1}, "--pack-budget -1"),
        ({"pack_budget": "x"}, "--pack-budget 'x'"),
        ({"packed_cache": ""}, "packed_cache is empty"),
        ({"packed_cache": 5}, "packed_cache must be a string or a path"),
        ({"context": 1.5}, "--context 1.5: a whole number"),
        ({"context": 10**5000}, "--context"),
        ({"threads": "x"}, "--threads 'x': a whole number"),
        ({"kv_type": 5}, "kv_type must be 'f16', 'q8_0' or 'f32', not 5"),
        ({"memory": 5}, "--memory 5"),
        ({"device": 5}, "device 5"),
        ({"pin": "yes"}, "--pin"),
        ({"vram": "x"}, "--vram 'x': an amount is written like"),
        ({"device": "cuda:x"}, "device 'cuda:x': there are cpu, cuda and cuda:N"),
        ({"progress": 5}, "progress must be a function or None, not 5"),
        ({"wait": 1}, "wait must be a bool, not 1"),
        ({"chunk": 0}, "--chunk 0: at least 1 token"),
    ],
)
def test_load_says_what_is_wrong(path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OffloadError, match=message):
        offload.load(**{"path": path, **options})


def test_calls_of_an_engine(engine: offload.Engine) -> None:
    tokenizer = engine.tokenizer
    question = [{"role": "user", "content": "Hi"}]
    always_wrong: dict[str, Callable[[Any], object]] = {
        "trace_routing": lambda v: None if v is None else engine.trace_routing(v),
        "chat": engine.chat,
        "prompt_tokens": engine.prompt_tokens,
        "logits": lambda v: engine.logits(v),
        "logits by kv_type": lambda v: engine.logits([1], kv_type=v),
        "encode": lambda v: v if isinstance(v, str) else tokenizer.encode(v),
        "special_id": lambda v: v if isinstance(v, str) else tokenizer.special_id(v),
        "decode": lambda v: v if v in ([], {}, ()) else tokenizer.decode(v),
        "token_bytes": lambda v: None if v == 5 else tokenizer.token_bytes(v),
        "is_control": lambda v: None if v == 5 else tokenizer.is_control(v),
        "encode_parts": lambda v: v if v in ([], {}, ()) else tokenizer.encode_parts(v),
        "progress": lambda v: None if v is None else engine.generate("x", progress=v),
        "generate": lambda v: v if isinstance(v, str) else engine.generate(v),
        "batch": lambda v: engine.batch(v),
        "options": lambda v: engine.batch(["x"], options=v),
        "at_once": lambda v: engine.batch(["x"], at_once=v, max_tokens=1),
        "save_session": lambda v: None if v == "x" else engine.save_session(v),
        "answer": lambda v: None if v is None else engine.save_session("x", v),
        "note": lambda v: None if v == "x" else engine.save_session("x", note=v),
        "load_session": engine.load_session,
    }
    accepted = {"trace_routing": 1, "encode": 1, "special_id": 1, "decode": 3, "token_bytes": 1,
                "is_control": 1, "encode_parts": 3, "progress": 1, "generate": 1,
                "batch": 2, "options": 1, "at_once": 2, "save_session": 1, "answer": 1,
                "note": 1}  # fmt: skip
    for name, call in always_wrong.items():
        outcomes = [tried(lambda call=call, value=value: call(value)) for value in ODD]
        assert outcomes.count(None) == accepted.get(name, 0), name
    for value in (*ODD, *ODD_TEXTS):
        tried(lambda value=value: engine.chat(question, thinking=value))
        tried(lambda value=value: engine.generate(value, max_tokens=1))
        tried(lambda value=value: engine.generate([value], max_tokens=1))
        tried(lambda value=value: engine.logits([1, value]))
        tried(lambda value=value: engine.logits([1], kv_type=value))
        tried(lambda value=value: tokenizer.decode([value]))
        for field in offload.SamplingParams.__dataclass_fields__:
            tried(lambda field=field, value=value: offload.SamplingParams(**{field: value}))
    for wrong in ([99999], [-1], "x", [1.5], [None], 5):
        assert tried(lambda wrong=wrong: tokenizer.decode(wrong)) is not None
    assert tokenizer.decode(np.array([104, 105])) == tokenizer.decode([104, 105])


def test_messages_of_odd_values(engine: offload.Engine) -> None:
    odd = (*ODD, *ODD_TEXTS, np.zeros(2), [[]], [{}], [None], {"function": 5}, [{"function": {}}])
    call = {"function": {"name": "f", "arguments": "{}"}}
    for value in odd:
        for key in ("role", "content", "name", "reasoning_content", "reasoning", "tool_calls",
                    "tool_call_id", "other", 5):  # fmt: skip
            message = {"role": "assistant", "content": "x", key: value}
            tried(lambda message=message: engine.prompt_tokens([message]))
        for changed in ({"id": value}, {"function": value}, {"function": {"name": value}},
                        {"function": {"name": "f", "arguments": value}}):  # fmt: skip
            message = {"role": "assistant", "tool_calls": [{**call, **changed}]}
            tried(lambda message=message: engine.prompt_tokens([message]))
        part = {"role": "user", "content": [{"type": value, "text": "x"}, value]}
        tried(lambda part=part: engine.prompt_tokens([part]))
        for kind, fields in ((Message, Message.__dataclass_fields__),
                             (ToolCall, ToolCall.__dataclass_fields__)):  # fmt: skip
            base = {"role": "assistant"} if kind is Message else {"name": "f"}
            for field in fields:
                tried(lambda kind=kind, base=base, field=field, value=value: kind(
                    **{**base, field: value}
                ))  # fmt: skip
    circle: list[object] = []
    circle.append(circle)
    for wrong, words in (
        ({"tool_calls": 5}, "tool_calls must be a list, not 5"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"x": object()}}}]}, "arguments"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": circle}}]}, "arguments"),
        ({"tool_calls": [{"id": 5, "function": {"name": "f"}}]}, "id must be a string"),
        ({"role": ["user"]}, "role"),
    ):
        error = tried(lambda wrong=wrong: engine.chat([{"role": "assistant", **wrong}]))
        assert error is not None
        assert "message 1: " in str(error)
        assert words in str(error)


def test_files_and_plans(file: offload.GGUFFile, path: Path) -> None:
    config = offload.ModelConfig.from_gguf(file)
    tensors = offload.census(file, config)
    hardware, options = offload.probe(), offload.PlanOptions(context=64)
    assert offload.make_plan(config, tensors, hardware, options)
    for value in (*ODD, *ODD_TEXTS):
        for wrong in (
            lambda value=value: offload.GGUFFile.open(value),
            lambda value=value: file.raw(value),
            lambda value=value: file.blocks(value),
            lambda value=value: file.tail_bytes(value),
            lambda value=value: offload.ModelConfig.from_gguf(value),
            lambda value=value: offload.make_plan(value, tensors, hardware, options),
            lambda value=value: offload.make_plan(config, value, hardware, options),
            lambda value=value: offload.make_plan(config, tensors, value, options),
            lambda value=value: offload.make_plan(config, tensors, hardware, value),
            lambda value=value: offload.plan_model(value, config, options, hardware),
            lambda value=value: offload.plan_model(file, value, options, hardware),
            lambda value=value: offload.plan_model(file, config, value, hardware),
            lambda value=value: offload.plan_model(file, config, options, value),
            lambda value=value: offload.Plan.from_json(value),
            lambda value=value: offload.census(value, config),
        ):
            assert tried(wrong) is not None
        for field in ("device", "context", "threads", "kv_type", "memory", "layout", "pin"):
            tried(lambda field=field, value=value: offload.make_plan(
                config, tensors, hardware, offload.PlanOptions(**{field: value})
            ))  # fmt: skip
        for field in ("layout", "budget", "cache"):
            tried(call_of(offload.LayoutOptions, field, value))
    with pytest.raises(OffloadError, match=r"no tensor 'no such tensor'"):
        file.raw("no such tensor")
    with pytest.raises(offload.PlanError, match="--threads 'x': a whole number"):
        offload.PlanOptions(threads="x")
    closed = offload.GGUFFile.open(path)
    closed.close()
    with pytest.raises(OffloadError, match="closed"):
        closed.raw("token_embd.weight")


def test_policies_and_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace = offload.RoutingTrace()
    trace(1, np.array([[1, 2], [2, 3]]))
    key = offload.ExpertKey(1, 2)

    def leased(keys: Any) -> None:
        with offload.ExpertCache(1, offload.LRU()).lease(keys):
            pass

    def with_profile(profile: Any) -> object:
        return offload.hit_rates(trace, [1], profile=profile)

    wrong: list[Callable[[Any], object]] = [
        lambda v: offload.hit_rates(v, [1]),
        lambda v: v if v in ([], {}, ()) else offload.hit_rates(trace, v),
        lambda v: v if v == 5 else offload.hit_rates(trace, [v]),
        lambda v: v if v == {} else offload.hit_rates(trace, [1], v),
        lambda v: v if not v and v != () else offload.hit_rates(trace, [1], profile=v),
        lambda v: trace(1, v),
        lambda v: v if v in (5, -1) else trace(v, np.zeros((1, 1), np.int64)),
        lambda v: offload.RoutingTrace.load(v),
        lambda v: v if v == "x" else trace.save(v),
        lambda v: v if v == 5 else offload.ExpertCache(v, offload.LRU()),
        lambda v: offload.ExpertCache(1, v),
        lambda v: v if v in (5, 1.5) else offload.LFU(v),
        lambda v: v if v in (5, 1.5) else offload.AdmitLFU(v),
        lambda v: offload.PerLayer(v),
        lambda v: offload.ExpertCache(1, offload.LRU()).prefetch(v),
        lambda v: v if v in ([], {}, ()) else leased(v),
        lambda v: leased([v]),
        lambda v: v if v == {} else offload.SamplingParams.from_options(v),
        lambda v: offload.SamplingParams.from_options({v: 1} if v.__hash__ else [v]),
        lambda v: offload.SamplingParams().with_defaults(v),
        lambda v: (
            v if isinstance(v, (int, float)) else offload.hit_rates(trace, [1], profile={key: v})
        ),
        lambda v: v if v in ([], {}, ()) else offload.PinnedHot(v),
    ]
    for number, call in enumerate(wrong):
        for value in ODD:
            if isinstance(value, bool) and number in (1, 2):
                continue
            outcome: list[object] = []
            error = tried(lambda value=value, call=call, o=outcome: o.append(call(value)))
            assert error is not None or outcome[0] is value or outcome == [None], (number, value)
    assert offload.hit_rates(trace, [0, 1, 2]).slots == [0, 1, 2]
    assert offload.PinnedHot([key]).pins == {key}
    with pytest.raises(offload.RequestError, match="trace must be a RoutingTrace, not 5"):
        offload.hit_rates(5, [1])
