"""Sets of files as they lie on people's disks: links, joined parts, strays."""

from __future__ import annotations

import logging
from pathlib import Path

import family
import gguf_bytes as gb
import pytest
from family import Sizes
from gguf_bytes import I32, STRING, U16, gguf, kv, tensor

from offload.config import ModelConfig
from offload.errors import GGUFError
from offload.gguf import GGUFFile

TOY = Sizes()
META = family.metadata(TOY)
TENSORS = family.tensors(TOY)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return gb.write_shards(tmp_path, "kimi", META, TENSORS, 3)


def joined(parts: list[Path], path: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def with_count(path: Path, old: int, new: int) -> None:
    """Change split.tensors.count in place."""
    raw = path.read_bytes()
    before, after = (kv("split.tensors.count", I32, n) for n in (old, new))
    assert raw.count(before) == 1
    path.write_bytes(raw.replace(before, after))


# links


def test_links_into_a_store_of_blobs(tmp_path: Path, shards: list[Path]) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate(shards):
        path.rename(blobs / f"{i:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{i:064x}")
    with GGUFFile.open(snapshot / shards[1].name) as f:
        assert [path.name for path in f.paths] == [path.name for path in shards]
        ModelConfig.from_gguf(f)
    (blobs / f"{2:064x}").unlink()
    with pytest.raises(GGUFError, match=r"00003-of-00003.gguf is a link to .*, which does not"):
        GGUFFile.open(snapshot / shards[0].name)


def test_a_link_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("a.gguf")
    with pytest.raises(GGUFError, match="cannot be opened: Too many levels"):
        GGUFFile.open(tmp_path / "a.gguf")


# parts joined with cat


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 1), (1, 2), (0, 0)])
@pytest.mark.parametrize(
    "name", ["kimi.gguf", "new-00001-of-00001.gguf", "new-00001-of-00003.gguf"]
)
def test_parts_joined_with_cat_are_recognised(
    shards: list[Path], tmp_path: Path, order: tuple[int, ...], name: str
) -> None:
    path = joined([shards[i] for i in order], tmp_path / name)
    message = rf"{name} is several parts joined with cat: part {order[0] + 1} of 3 ends at byte"
    with pytest.raises(GGUFError, match=message) as caught:
        GGUFFile.open(path)
    assert "llama-gguf-split --merge FIRST-PART OUTPUT" in str(caught.value)


def test_a_first_part_without_tensors_joined_with_cat(tmp_path: Path) -> None:
    split = [kv("split.count", U16, 2), kv("split.tensors.count", I32, 1)]
    first = gguf([kv("split.no", U16, 0), *split], [])
    second = gguf([kv("split.no", U16, 1), *split], [tensor("t", (4,))], bytes(32))
    path = tmp_path / "m.gguf"
    path.write_bytes(first + second)
    with pytest.raises(GGUFError, match="joined with cat: part 1 of 2"):
        GGUFFile.open(path)


def test_another_file_behind_a_whole_model_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = gb.write_model(tmp_path / "a.gguf", META, TENSORS)
    raw = path.read_bytes()
    path.write_bytes(raw + raw)
    with caplog.at_level(logging.WARNING, logger="offload"), GGUFFile.open(path) as f:
        ModelConfig.from_gguf(f)
    (record,) = caplog.records
    assert f"another GGUF file begins at byte {len(raw):,}" in record.getMessage()
    path.write_bytes(raw + b"GGUF is a format" + bytes(64))  # only looks like it
    caplog.clear()
    GGUFFile.open(path)
    assert not caplog.records


# the count of tensors


def test_a_stale_count_of_tensors_is_a_warning(
    shards: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    for changed in (shards[1:2], shards[:1], shards[2:]):  # one part, two parts, all
        for path in changed:
            with_count(path, len(TENSORS), len(TENSORS) + 7)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="offload"), GGUFFile.open(shards[0]) as f:
            ModelConfig.from_gguf(f)
        (record,) = caplog.records
        assert "split.tensors.count" in record.getMessage()
        assert f"{len(TENSORS) + 7:,} tensors" in record.getMessage()


def test_a_missing_tensor_stays_an_error(tmp_path: Path) -> None:
    fewer = {name: value for name, value in TENSORS.items() if name != "blk.1.attn_k_b.weight"}
    paths = gb.write_shards(tmp_path, "kimi", META, fewer, 3)
    for path in paths:
        with_count(path, len(fewer), len(TENSORS))
    with (
        GGUFFile.open(paths[0]) as f,
        pytest.raises(GGUFError, match="1 of .* missing: blk.1.attn_k_b.weight"),
    ):
        ModelConfig.from_gguf(f)


def test_parts_that_a_tool_joined_may_keep_their_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows, size = gb.layout(TENSORS)
    split = [
        kv("split.no", U16, 0),
        kv("split.count", U16, 3),
        kv("split.tensors.count", I32, len(TENSORS)),
    ]
    path = tmp_path / "merged.gguf"
    path.write_bytes(gguf([gb.auto_kv(k, v) for k, v in META.items()] + split, rows, bytes(size)))
    with caplog.at_level(logging.WARNING, logger="offload"), GGUFFile.open(path) as f:
        ModelConfig.from_gguf(f)
    assert caplog.messages == [
        "merged.gguf says that it is one of 3 parts (split.count), but holds all tensors"
    ]


# strays


def test_a_later_part_alone(shards: list[Path]) -> None:
    shards[0].unlink()
    shards[1].unlink()
    with pytest.raises(GGUFError, match="2 of the 3 parts are missing .*00001-of-00003.gguf, kimi"):
        GGUFFile.open(shards[2])
    alone = shards[2].rename(shards[2].with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"model.gguf is one of 3 parts .* original names"):
        GGUFFile.open(alone)


def test_a_part_that_was_not_downloaded_whole(shards: list[Path]) -> None:
    raw = shards[1].read_bytes()
    for size in (len(raw) - 1, len(raw) // 2, 100, 3, 0):
        shards[1].write_bytes(raw[:size])
        for path in shards:
            with pytest.raises(GGUFError, match=r"00002-of-00003.gguf.*download it again"):
                GGUFFile.open(path)


def test_parts_of_two_models(tmp_path: Path, shards: list[Path]) -> None:
    larger = family.tensors(Sizes(layers=5))
    others = gb.write_shards(tmp_path, "other", family.metadata(Sizes(layers=5)), larger, 3)
    shards[1].write_bytes(others[1].read_bytes())
    with pytest.raises(GGUFError, match="is in two parts.*do not belong together|missing"):  # noqa: SIM117
        with GGUFFile.open(shards[0]) as f:
            ModelConfig.from_gguf(f)
    four = gb.write_shards(tmp_path, "four", META, TENSORS, 4)
    shards[1].write_bytes(four[1].read_bytes())
    with pytest.raises(GGUFError, match="split.count is 4, but the first part says 3"):
        GGUFFile.open(shards[0])


@pytest.mark.parametrize("ending", ["part1of2", "part-02", "split-aa", "001"])
def test_pieces_of_one_file_are_recognised_by_their_names(tmp_path: Path, ending: str) -> None:
    raw = gb.write_model(tmp_path / "m.gguf", META, TENSORS).read_bytes()
    for piece in (raw[:-500], raw[-500:]):
        path = tmp_path / f"m.gguf.{ending}"
        path.write_bytes(piece)
        with pytest.raises(GGUFError, match="a piece of a file: join the pieces, in order, with"):
            GGUFFile.open(path)


# names that come from files


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    bad = "\x1b]0;title\x07\u202e\n"
    one = tmp_path / f"x{bad}y.gguf"
    cases = [
        gguf([kv(f"k{bad}", STRING, gb.u64(2**40))], []),
        gguf([kv(f"k{bad}", U16, 1)] * 2, []),
        gguf([], [tensor(f"t{bad}", (4,))], bytes(3)),
        gguf([], [tensor(f"t{bad}", (4,), 12)], bytes(32)),
        gguf([], [tensor(f"t{bad}", (4,))] * 2, bytes(64)),
        gguf([kv("general.alignment", STRING, bad * 1000)], []),
        gguf([kv("split.count", STRING, bad)], []),
        b"no GGUF at all",
        b"",
    ]
    for raw in cases:
        one.write_bytes(raw)
        with pytest.raises(GGUFError) as caught:
            GGUFFile.open(one)
        assert str(caught.value).isprintable(), str(caught.value)
        assert len(str(caught.value)) < 1000
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(GGUFError) as caught:
            GGUFFile.open(path)  # lists what is there
        assert r"x\x1b]0;title\x07\u202e\ny.gguf" in str(caught.value)
        assert str(caught.value).isprintable()
