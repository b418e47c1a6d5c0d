from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import family
import gguf_bytes as gb
import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, F32, I32, STRING, U8, U16, U32, U64, gguf, kv, tensor, u32, u64
from own_time import takes_less_than

from offload.config import ModelConfig
from offload.errors import GGUFError, OffloadError, RequestError, UnsupportedError
from offload.gguf import GGUFFile, StringArray
from offload.metadata import described
from offload.tensor_census import census
from quant.ggml import BLOCK, IK_LLAMA_TYPES, REMOVED_TYPES, GGMLType, QuantError, row_bytes

ARCH = kv("general.architecture", STRING, "deepseek2")
TENSORS = {
    "a.weight": ((3, 8), 0),
    "b.weight": ((2, 64), 8),
    "c.weight": ((4, 2, 256), 12),
}


def sound_file() -> bytes:
    rows, size = gb.layout(TENSORS)
    kvs = [
        ARCH,
        kv("an.int", U32, 7),
        kv("a.float", F32, 0.5),
        kv("a.bool", BOOL, True),
        kv("a.long", U64, 2**40),
        kv("some.words", ARRAY, gb.array(STRING, ["alpha", "", "gämma", "δ"])),
        kv("some.numbers", ARRAY, gb.array(I32, [1, -2, 3])),
        kv("some.flags", ARRAY, gb.array(BOOL, [True, False])),
        kv("nested", ARRAY, u32(ARRAY) + u64(2) + gb.array(U8, [1, 2]) + gb.array(STRING, ["x"])),
    ]
    data = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8).tobytes()
    return gguf(kvs, rows, data)


def written(tmp_path: Path, raw: bytes, name: str = "model.gguf") -> Path:
    path = tmp_path / name
    path.write_bytes(raw)
    return path


def test_metadata_of_every_kind(tmp_path: Path) -> None:
    with GGUFFile.open(written(tmp_path, sound_file())) as f:
        meta = f.metadata
        assert f.version == 3
        assert f.alignment == 32
        assert meta["an.int"] == 7
        assert meta["a.float"] == 0.5
        assert meta["a.bool"] is True
        assert meta["a.long"] == 2**40
        words = meta["some.words"]
        assert isinstance(words, StringArray)
        assert words == ["alpha", "", "gämma", "δ"]
        assert list(words) == [words[i] for i in range(4)]
        assert words[-1] == "δ"
        assert words[1:3] == ["", "gämma"]
        assert words.raw(2) == "gämma".encode()
        with pytest.raises(IndexError):
            words[4]
        assert meta["some.numbers"].tolist() == [1, -2, 3]
        assert meta["some.flags"].tolist() == [True, False]
        assert meta["nested"][0].tolist() == [1, 2]
        assert meta["nested"][1] == ["x"]
        with pytest.raises(TypeError):
            f.metadata["new"] = 1  # type: ignore[index]


def test_tensors_are_read_only_views_of_exactly_their_bytes(tmp_path: Path) -> None:
    raw = sound_file()
    with GGUFFile.open(str(written(tmp_path, raw))) as f:
        assert list(f.tensors) == list(TENSORS)
        assert f.file_bytes == len(raw)
        for name, (shape, kind) in TENSORS.items():
            info, view = f.tensors[name], f.raw(name)
            assert (info.name, info.shape, info.ggml_type, info.part) == (name, shape, kind, 0)
            assert info.n_bytes == gb.n_bytes(shape, kind) == view.size
            assert view.tobytes() == raw[info.offset : info.offset + info.n_bytes]
            assert not view.flags.writeable
            assert np.shares_memory(view, f.raw(name))
            assert f.tail_bytes(name) == len(raw) - info.offset - info.n_bytes
        assert f.blocks("c.weight").shape == (4, 2, 1, 144)
        assert f.blocks("b.weight").shape == (2, 2, 34)
        assert np.shares_memory(f.blocks("c.weight"), f.raw("c.weight"))
        with pytest.raises(RequestError, match="there is no tensor"):
            f.raw("nothing")


def test_views_outlive_close(tmp_path: Path) -> None:
    with GGUFFile.open(written(tmp_path, sound_file())) as f:
        view, words = f.raw("a.weight"), f.metadata["some.words"]
        before = view.tobytes()
    f.close()
    assert view.tobytes() == before
    assert words[0] == "alpha"
    assert f.tensors["a.weight"].shape == (3, 8)
    assert not f.metadata
    with pytest.raises(RequestError, match="closed"):
        f.raw("a.weight")


def test_version_2_opens_and_other_alignments_hold(tmp_path: Path) -> None:
    for alignment in (1, 8, 64, 4096):
        rows, size = gb.layout(TENSORS, alignment)
        kvs = [kv("general.alignment", U32, alignment)]
        raw = gguf(kvs, rows, bytes(size), version=2, alignment=alignment)
        with GGUFFile.open(written(tmp_path, raw)) as f:
            assert f.version == 2
            assert f.alignment == alignment
            assert all(info.offset % alignment == 0 for info in f.tensors.values())


def test_strings_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    items = u32(STRING) + u64(2) + gb.string(b"\xff\xfe") + gb.string("ok")
    raw = gguf([kv("words", ARRAY, items), kv("one", STRING, gb.string(b"a\xffb"))], [])
    with GGUFFile.open(written(tmp_path, raw)) as f:
        assert f.metadata["words"].raw(0) == b"\xff\xfe"
        assert f.metadata["words"][0] == "\ufffd\ufffd"
        assert f.metadata["one"] == "a\ufffdb"


def nested(depth: int) -> bytes:
    return (u32(ARRAY) + u64(1)) * (depth - 1) + u32(U8) + u64(1) + b"\0"


T = tensor("t", (4,))
BAD: dict[str, tuple[bytes, str]] = {
    # magic and version
    "empty": (b"", "is empty"),
    "magic only": (b"GGUF", "version needs 4 bytes"),
    "half a magic": (b"GG", "cut short"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian GGUF .version 3"),
    "version 1": (b"GGUF" + u32(1) + bytes(40), "version 1"),
    "version 0": (b"GGUF" + u32(0) + bytes(40), "big-endian|version 0"),
    "version 4": (b"GGUF" + u32(4) + bytes(40), "version 4"),
    "version huge": (b"GGUF" + u32(0xFFFFFFFF) + bytes(40), "version 4,294,967,295"),
    "no counts": (b"GGUF" + u32(3) + b"\1\0", "number of tensors needs 8 bytes"),
    # other files
    "safetensors": (u64(500) + b'{"__metadata__"' + bytes(500), "safetensors"),
    "zip": (b"PK\x03\x04" + bytes(60), "PyTorch"),
    "pickle": (b"\x80\x02}q" + bytes(60), "pickle"),
    "html": (b"\n<!DOCTYPE html><html>" + bytes(60), "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
    "ggjt": (b"tjgg" + bytes(60), "GGJT"),
    "json": (b'{"model_type": "kimi"}', "JSON"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "gzip"),
    "zeros": (bytes(4096), "zeros"),
    "text": (b"Hello, world. This is text.", "starts with b'Hello, w'"),
    # counts
    "tensor count": (gguf([ARCH], [], n_tensors=2**63), "claims 9,223,372,036,854,775,808 tensors"),
    "tensor count, near": (gguf([ARCH], [T], bytes(32), n_tensors=3), "tensor 1 has 0 bytes"),
    "tensor count, max": (gguf([ARCH], [], n_tensors=2**64 - 1), "claims"),
    "kv count": (gguf([ARCH], [], n_kv=2**62), "metadata entries"),
    "kv count, one more": (gguf([ARCH], [T], bytes(32), n_kv=2), "tensor 0 has 0 bytes"),
    # keys
    "key empty": (gguf([kv("", U32, 1)], []), "has 0 bytes"),
    "key too long": (gguf([kv("k" * 65_536, U32, 1)], []), "65,536 bytes; 1 to 65,535"),
    "key length": (gguf([u64(2**63) + b"key" + u32(4) + u32(1)], []), "bytes; 1 to"),
    "key not utf-8": (gguf([kv(b"\xff\xff", U32, 1)], []), "not UTF-8"),
    "key twice": (gguf([ARCH, ARCH], []), "appears twice"),
    "key type 13": (gguf([kv("k", 13, b"\0" * 8)], []), "type code 13"),
    "key type huge": (gguf([kv("k", 2**31, b"\0" * 8)], []), "type code 2,147,483,648"),
    "value cut": (gguf([kv("k", U64, b"\0")], [], alignment=1), "needs 8 bytes"),
    "bool 2": (gguf([kv("k", BOOL, b"\2")], []), "boolean with the byte 2"),
    "string length": (gguf([kv("k", STRING, u64(2**64 - 1))], []), "needs 18,446,744,073,709,551"),
    # arrays
    "array type 13": (gguf([kv("k", ARRAY, u32(13) + u64(1) + b"\0")], []), "type code 13"),
    "array count": (gguf([kv("k", ARRAY, u32(U32) + u64(2**62))], []), "claims"),
    "array count wraps": (gguf([kv("k", ARRAY, u32(U64) + u64(2**61))], []), "claims"),
    "array bools": (gguf([kv("k", ARRAY, u32(BOOL) + u64(2) + b"\1\7")], []), "booleans"),
    "array strings": (gguf([kv("k", ARRAY, u32(STRING) + u64(2**50))], []), "claims"),
    "array string length": (
        gguf([kv("k", ARRAY, u32(STRING) + u64(2) + gb.string("ok") + u64(2**63))], []),
        "string 1 of the 2",
    ),
    "array string runs out": (
        gguf([kv("k", ARRAY, u32(STRING) + u64(2) + u64(2**64 - 9) + u64(0))], []),
        "string 0 of the 2",
    ),
    "array too deep": (gguf([kv("k", ARRAY, nested(5))], []), "more than 4 deep"),
    "array of arrays count": (gguf([kv("k", ARRAY, u32(ARRAY) + u64(2**60))], []), "claims"),
    # alignment
    "alignment 0": (gguf([kv("general.alignment", U32, 0)], []), "power of two"),
    "alignment 24": (gguf([kv("general.alignment", U32, 24)], []), "power of two"),
    "alignment text": (gguf([kv("general.alignment", STRING, "32")], []), "power of two"),
    "alignment negative": (gguf([kv("general.alignment", I32, -32)], []), "power of two"),
    # tensors
    "name empty": (gguf([], [tensor("", (4,))], bytes(32)), "has 0 bytes"),
    "name too long": (gguf([], [tensor("n" * 256, (4,))], bytes(32)), "256 bytes; 1 to 255"),
    "name not utf-8": (gguf([], [tensor(b"\xc3", (4,))], bytes(32)), "not UTF-8"),
    "name twice": (gguf([], [T, tensor("t", (4,), 0, 32)], bytes(64)), "appears twice"),
    "5 dimensions": (gguf([], [tensor("t", (1,) * 5)], bytes(32)), "5 dimensions"),
    "2^32-1 dimensions": (gguf([], [gb.string("t") + u32(2**32 - 1)], bytes(64)), "dimensions"),
    "dimension 0": (gguf([], [tensor("t", (0, 4))], bytes(32)), "impossible shape"),
    "dimension -1": (gguf([], [tensor("t", (2**64 - 1,))], bytes(32)), "impossible shape"),
    "product wraps": (gguf([], [tensor("t", (2**32, 2**32))], bytes(32)), "impossible shape"),
    "bytes wrap": (gguf([], [tensor("t", (2**62,))], bytes(32)), "needs bytes up to"),
    "row not in blocks": (gguf([], [tensor("t", (2, 100), 12)], bytes(512)), "Q4_K block size"),
    "offset unaligned": (gguf([], [tensor("t", (4,), 0, 8)], bytes(64)), "alignment 32"),
    "offset far": (gguf([], [tensor("t", (4,), 0, 2**40)], bytes(64)), "needs bytes up to"),
    "offset max": (gguf([], [tensor("t", (4,), 0, 2**64 - 32)], bytes(64)), "needs bytes up to"),
    "data cut": (gguf([], [T], bytes(15)), "cut short: t needs bytes up to"),
    "data missing": (gguf([], [T], alignment=1), "cut short"),
    "overlap": (gguf([], [tensor("t", (16,)), tensor("u", (8,), 0, 32)], bytes(96)), "overlaps"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_file_is_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    raw, message = BAD[case]
    with pytest.raises(OffloadError, match=message) as caught:
        GGUFFile.open(written(tmp_path, raw))
    assert type(caught.value) in (GGUFError, UnsupportedError)
    assert "model.gguf" in str(caught.value)


FOREIGN = {
    4: "Q4_2",
    31: "Q4_0_4_4",
    77: "type 77",
    145: "IQ2_KS",
    2**32 - 1: "type 4294967295",
}


@pytest.mark.parametrize("code", FOREIGN)
def test_types_of_other_programs_are_kept_apart(code: int, tmp_path: Path) -> None:
    """One of them does not hide the rest of the file, and is refused where a model is wanted."""
    table = [tensor("t", (4,)), tensor("blk.3.ffn_up_exps.weight", (7, 100), code, 32)]
    raw = gguf([ARCH], table, bytes(64))
    with GGUFFile.open(written(tmp_path, raw)) as f:
        assert list(f.tensors) == ["t"]
        info = f.foreign["blk.3.ffn_up_exps.weight"]
        assert (info.code, info.type_name, info.shape) == (code, FOREIGN[code], (7, 100))
        with pytest.raises(UnsupportedError, match="model.gguf: blk.3.ffn_up_exps.weight has type"):
            ModelConfig.from_gguf(f)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (31, r"Q4_0_4_4 \(code 31\), which"),
        (77, r"unknown code 77, which this program cannot read \(and 1 more tensors like it\)"),
        (145, r"t has type IQ2_KS \(code 145\) of ik_llama.cpp, which this"),
        (2**32 - 1, "unknown code 4294967295"),
    ],
)
def test_types_of_other_programs_are_named(code: int, message: str, tmp_path: Path) -> None:
    raw = gguf([ARCH], [tensor("t", (32,), code), tensor("u", (32,), code, 32)], bytes(64))
    with GGUFFile.open(written(tmp_path, raw)) as f, pytest.raises(UnsupportedError, match=message):
        ModelConfig.from_gguf(f)


def test_tensors_of_unknown_types_are_checked_too(tmp_path: Path) -> None:
    for table, message in (
        ([tensor("t", (4,)), tensor("t", (4,), 99, 32)], "t appears twice"),
        ([tensor("t", (4,), 99, 8)], "alignment 32"),
        ([tensor("t", (4,), 99, 64)], "cut short: t needs bytes up to"),
    ):
        with pytest.raises(GGUFError, match=message):
            GGUFFile.open(written(tmp_path, gguf([], table, bytes(64))))


def test_truncation_at_every_byte_of_the_header(tmp_path: Path) -> None:
    raw = sound_file()
    path = tmp_path / "model.gguf"
    for end in range(0, len(raw), 7):
        path.write_bytes(raw[:end])
        with pytest.raises(GGUFError):
            GGUFFile.open(path)


def mutants(n: int) -> list[bytes]:
    rng = random.Random(7)
    sound = sound_file()
    header = len(sound) - gb.layout(TENSORS)[1]
    special = [0, 1, 0x7F, 0x80, 0xFF]
    out = []
    for _ in range(n):
        raw = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(4, header)
            kind = rng.randrange(4)
            if kind == 0:
                raw[at] = rng.choice(special)
            elif kind == 1:
                raw[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                raw[at : at + 8] = u64(rng.choice([0, 2**31, 2**32, 2**63, 2**64 - 1, 2**61]))
            else:
                del raw[at : at + rng.randint(1, 9)]
        out.append(bytes(raw))
    return out


def test_no_mutation_of_the_header_escapes(tmp_path: Path) -> None:
    """Opening either works, and then every view is inside the file, or fails in words, quickly."""
    path = tmp_path / "model.gguf"
    opened, reasons = 0, set()
    for raw in mutants(2000):
        path.write_bytes(raw)
        with takes_less_than(1.0):
            try:
                with GGUFFile.open(path) as f:
                    for name, info in f.tensors.items():
                        assert f.raw(name).size == info.n_bytes
                        assert f.tail_bytes(name) >= 0
                        f.blocks(name)
                    for value in f.metadata.values():
                        repr(value)
                        if isinstance(value, StringArray):
                            list(value)
                    opened += 1
            except (GGUFError, UnsupportedError) as exc:
                reasons.add(str(exc))
    assert opened > 100  # mutations of values and names leave a sound file
    assert len(reasons) > 100
    assert all("model.gguf" in reason for reason in reasons)


@cache
def hostile_headers() -> dict[str, bytes]:
    """Headers of about 1 MB that would take long, or much memory, if they were believed."""
    nest = u32(ARRAY) + u64(1)
    flat = u32(ARRAY) + u32(ARRAY) + u64(60_000) + (u32(U8) + u64(0)) * 60_000
    return {
        "many keys": gguf([kv(f"k{i}", U8, 1) for i in range(40_000)], []),
        "many keys of the family": gguf([kv(f"deepseek2.{i}", U8, 1) for i in range(30_000)], []),
        "the same key at last": gguf([kv(f"k{i % 39_999}", U8, 1) for i in range(40_000)], []),
        "many arrays": gguf([kv(f"k{i}", ARRAY, gb.array(U8, [])) for i in range(30_000)], []),
        "arrays of arrays": gguf([gb.string("k") + flat], []),
        "deep": gguf([kv("k", ARRAY, nest * 80_000 + u32(U8) + u64(0))], []),
        "long key": gguf([kv("k" * 65_535, U8, 1)] * 15, []),
        "many strings": gguf([kv("k", ARRAY, gb.array(STRING, [""] * 120_000))], []),
        "counts that fit": gguf([], [], n_kv=70_000) + bytes(2**20),
        "many tensors": gguf([], [tensor(f"t{i}", (1,)) for i in range(25_000)], bytes(64)),
        "many of one name": gguf([], [tensor("t", (1,)) for _ in range(25_000)], bytes(64)),
        "many of no type": gguf(
            [], [tensor(f"t{i}", (2**40,) * 1, 99) for i in range(25_000)], bytes(64)
        ),
    }


@pytest.mark.parametrize("case", hostile_headers())
def test_hostile_headers_are_quick(case: str, tmp_path: Path) -> None:
    path = written(tmp_path, hostile_headers()[case])
    with takes_less_than(1.0):
        try:
            with GGUFFile.open(path) as f:
                census(f)
                [described(value) for value in f.metadata.values()]
                ModelConfig.from_gguf(f)
        except OffloadError as exc:
            message = str(exc)
    assert len(message) < 500


# paths


def test_missing_file_lists_what_is_there(tmp_path: Path) -> None:
    written(tmp_path, b"", "other.gguf")
    with pytest.raises(GGUFError, match=r"no such file; .* holds other.gguf"):
        GGUFFile.open(tmp_path / "model.gguf")


def test_directory_lists_first_parts(tmp_path: Path) -> None:
    for name in ("k-00001-of-00002.gguf", "k-00002-of-00002.gguf", "a.gguf"):
        written(tmp_path, b"", name)
    with pytest.raises(GGUFError, match="is a directory; give one of its files: ") as caught:
        GGUFFile.open(tmp_path)
    assert "a.gguf, k-00001-of-00002.gguf" in str(caught.value)
    assert "00002-of" not in str(caught.value)


def test_empty_directory_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="holds no .gguf file"):
        GGUFFile.open(tmp_path)
    with pytest.raises(GGUFError, match="not a regular file"):
        GGUFFile.open("/dev/null")
    with pytest.raises(GGUFError, match="cannot be opened"):
        GGUFFile.open("bad\0name.gguf")
    with pytest.raises(GGUFError, match="no such file"):
        GGUFFile.open(written(tmp_path, b"x") / "below")


# shards


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return gb.write_shards(tmp_path, "kimi", {"general.architecture": "deepseek2"}, TENSORS, 3)


def test_any_shard_finds_the_others(shards: list[Path]) -> None:
    for path in shards:
        with GGUFFile.open(path) as f:
            assert list(f.paths) == shards
            assert f.metadata["general.architecture"] == "deepseek2"
            assert [info.part for info in f.tensors.values()] == [0, 1, 2]
            assert f.file_bytes == sum(p.stat().st_size for p in shards)
            assert f.raw("c.weight").size == gb.n_bytes(*TENSORS["c.weight"])


def test_first_part_without_tensors(tmp_path: Path) -> None:
    split = [kv("split.count", U16, 2), kv("split.tensors.count", I32, 3)]
    rows, size = gb.layout(TENSORS)
    first = gguf([ARCH, kv("split.no", U16, 0), *split], [])
    written(tmp_path, first, "m-00001-of-00002.gguf")
    second = gguf([kv("split.no", U16, 1), *split], rows, bytes(size))
    with GGUFFile.open(written(tmp_path, second, "m-00002-of-00002.gguf")) as f:
        assert len(f.tensors) == 3
        assert f.tensors["a.weight"].part == 1


def test_missing_shards_are_named(shards: list[Path]) -> None:
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(GGUFError, match="2 of the 3 parts are missing") as caught:
        GGUFFile.open(shards[1])
    assert shards[0].name in str(caught.value)
    assert shards[2].name in str(caught.value)
    with pytest.raises(GGUFError, match=f"no such file; .* holds {shards[1].name}"):
        GGUFFile.open(shards[0])


def test_renamed_shards(shards: list[Path]) -> None:
    plain = shards[0].rename(shards[0].with_name("kimi.gguf"))
    with pytest.raises(GGUFError, match="one of 3 parts .* original names"):
        GGUFFile.open(plain)
    swapped = plain.rename(plain.with_name("kimi-00001-of-00004.gguf"))
    with pytest.raises(GGUFError, match="name says 4 parts, the file says 3"):
        GGUFFile.open(swapped)


def test_exchanged_shards(shards: list[Path]) -> None:
    spare = shards[0].with_name("spare")
    shards[1].rename(spare)
    shards[2].rename(shards[1])
    spare.rename(shards[2])
    with pytest.raises(GGUFError, match=r"split.no is 2, but the name says part 2"):
        GGUFFile.open(shards[0])


def split_kvs(no: int, count: int, tensors: int) -> list[bytes]:
    return [
        kv("split.no", U16, no),
        kv("split.count", U16, count),
        kv("split.tensors.count", I32, tensors),
    ]


PAIRS: dict[str, tuple[bytes, bytes, str]] = {
    "duplicate tensor": (
        gguf(split_kvs(0, 2, 2), [T], bytes(32)),
        gguf(split_kvs(1, 2, 2), [T], bytes(32)),
        "tensor t is in two parts",
    ),
    "counts differ": (
        gguf(split_kvs(0, 2, 2), [T], bytes(32)),
        gguf(split_kvs(1, 3, 2), [tensor("u", (4,))], bytes(32)),
        "split.count is 3, but the first part says 2",
    ),
    "no split keys": (
        gguf(split_kvs(0, 2, 2), [T], bytes(32)),
        gguf([ARCH], [tensor("u", (4,))], bytes(32)),
        "split.no is None",
    ),
    "second broken": (
        gguf(split_kvs(0, 2, 2), [T], bytes(32)),
        gguf(split_kvs(1, 2, 2), [tensor("u", (4,))], bytes(7)),
        "m-00002-of-00002.gguf is cut short",
    ),
    "count is text": (
        gguf([kv("split.count", STRING, "2")], [T], bytes(32)),
        b"",
        "split.count is '2'",
    ),
    "count negative": (gguf([kv("split.count", I32, -2)], [T], bytes(32)), b"", "split.count is"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_parts_that_do_not_belong_together(case: str, tmp_path: Path) -> None:
    first, second, message = PAIRS[case]
    path = written(tmp_path, first, "m-00001-of-00002.gguf")
    written(tmp_path, second, "m-00002-of-00002.gguf")
    with pytest.raises(GGUFError, match=message):
        GGUFFile.open(path)


# speed


def test_a_k25_sized_model_opens_within_a_second(k25_files: list[Path]) -> None:
    best = min(timed(lambda: GGUFFile.open(k25_files[2])) for _ in range(3))
    assert best < 1.0
    with GGUFFile.open(k25_files[0]) as f:
        assert len(f.tensors) == 1096
        assert len(f.paths) == 5
        tokens = f.metadata["tokenizer.ggml.tokens"]
        assert len(tokens) == 163_840
        assert tokens[163_839] == "token163839"
        assert len(f.metadata["tokenizer.ggml.merges"]) == 163_328


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def k25_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five parts with every tensor of Kimi K2.5; the 250 GB of data are a hole in the files."""
    meta = family.metadata(family.K25)
    meta["tokenizer.ggml.tokens"] = [f"token{i}" for i in range(163_840)]
    meta["tokenizer.ggml.merges"] = [f"tok en{i}" for i in range(163_328)]
    meta["tokenizer.ggml.token_type"] = np.ones(163_840, np.int32)
    tensors = family.tensors(family.K25, weight=family.Q4_K, experts=family.IQ1_S)
    folder = tmp_path_factory.mktemp("k25")
    return gb.write_shards(folder, "Kimi-K2.5-IQ1_S", meta, tensors, 5)


# second opinions


def test_block_sizes_agree_with_gguf_py() -> None:
    constants = pytest.importorskip("gguf.constants")
    theirs = {int(t): tuple(size) for t, size in constants.GGML_QUANT_SIZES.items()}
    for ggml_type, block in BLOCK.items():
        if int(ggml_type) in theirs:
            assert block == theirs[ggml_type], ggml_type.name
    ours = {int(t) for t in BLOCK}
    assert set(theirs) - ours - set(REMOVED_TYPES) == set()
    assert ours.isdisjoint(REMOVED_TYPES)
    assert ours.isdisjoint(IK_LLAMA_TYPES)


def test_row_bytes_names_the_number_the_type_and_the_rule() -> None:
    assert row_bytes(GGMLType.Q4_K, 512) == 288
    for n in (100, -256):
        with pytest.raises(QuantError, match=rf"{n} is not a multiple of the Q4_K block size"):
            row_bytes(GGMLType.Q4_K, n)


def test_a_file_written_by_gguf_py(tmp_path: Path) -> None:
    gguf_py = pytest.importorskip("gguf")
    rng = np.random.default_rng(3)
    arrays = {
        "a.weight": rng.standard_normal((3, 5), np.float32),
        "b.weight": rng.standard_normal((2, 4, 32)).astype(np.float16),
    }
    writer = gguf_py.GGUFWriter(tmp_path / "theirs.gguf", "deepseek2")
    writer.add_block_count(7)
    writer.add_float64("pi", 3.25)
    writer.add_token_list(["x", "é", "漢"])
    writer.add_array("numbers", [1.5, 2.5])
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(tmp_path / "theirs.gguf") as f:
        assert f.metadata["deepseek2.block_count"] == 7
        assert f.metadata["pi"] == 3.25
        assert f.metadata["tokenizer.ggml.tokens"] == ["x", "é", "漢"]
        assert f.metadata["numbers"].tolist() == [1.5, 2.5]
        for name, values in arrays.items():
            assert f.tensors[name].shape == values.shape
            np.testing.assert_array_equal(f.raw(name).view(values.dtype), values.ravel())
