"""Names of models on the hub, and which files of a repository they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from offload.errors import HubError, RequestError
from offload.hub_files import RemoteFile, choices, choose, sure_choice
from offload.hub_name import HubName, is_hub_name, is_safe_path, parse_hub_name

GB = 10**9


def shards(folder: str, name: str, count: int, gb: float, skip: int | None = None) -> list[str]:
    return [
        f"{folder}{name}-{i:05}-of-{count:05}.gguf={gb / count}"
        for i in range(1, count + 1)
        if i != skip
    ]


def files(*texts: str | list[str]) -> list[RemoteFile]:
    """PATH or PATH=GB."""
    flat = [t for text in texts for t in ([text] if isinstance(text, str) else text)]
    pairs = [text.partition("=") for text in flat]
    return [RemoteFile(path=p, n_bytes=int(float(gb or 1) * GB), etag="0" * 64)
            for p, _, gb in pairs]  # fmt: skip


K25 = files(
    ".gitattributes",
    "README.md",
    "imatrix_unsloth.gguf_file",
    "mmproj-F16.gguf",
    "mmproj-BF16.gguf",
    shards("UD-TQ1_0/", "Kimi-K2.5-UD-TQ1_0", 5, 240),
    shards("UD-Q2_K_XL/", "Kimi-K2.5-UD-Q2_K_XL", 8, 375),
    shards("Q4_0/", "Kimi-K2.5-Q4_0", 12, 560),
    shards("BF16/", "Kimi-K2.5-BF16", 46, 2050),
)
FLASH = files(
    "GLM-4.7-Flash-Q4_K_M.gguf=18.3",
    "GLM-4.7-Flash-Q4_K_S.gguf=17.2",
    "GLM-4.7-Flash-UD-Q4_K_XL.gguf=17.5",
    "GLM-4.7-Flash-Q8_0.gguf=31.8",
    "GLM-4.7-Flash-imatrix.gguf=0.1",
)


# --- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:o/r", HubName(repo="o/r")),
        ("hf:o/r:UD-TQ1_0", HubName(repo="o/r", quant="UD-TQ1_0")),
        ("HF:o/r:q4_k_m", HubName(repo="o/r", quant="q4_k_m")),
        ("hf://o/r:Q8_0", HubName(repo="o/r", quant="Q8_0")),
        ("hf:o/r@v1:Q8_0", HubName(repo="o/r", revision="v1", quant="Q8_0")),
        ("hf:o/r@refs/pr/1:Q8_0", HubName(repo="o/r", revision="refs/pr/1", quant="Q8_0")),
        ("hf:o/r@refs/pr/1", HubName(repo="o/r", revision="refs/pr/1")),
        ("hf:o/r.GGUF/a/b.gguf", HubName(repo="o/r.GGUF", file="a/b.gguf")),
        ("hf:o/r@main/b.gguf", HubName(repo="o/r", revision="main", file="b.gguf")),
        ("https://huggingface.co/o/r", HubName(repo="o/r")),
        ("https://huggingface.co/o/r/tree/main", HubName(repo="o/r")),
        ("https://huggingface.co/o/r/tree/v2/UD-TQ1_0", HubName(repo="o/r", revision="v2",
                                                                quant="UD-TQ1_0")),
        ("https://hf.co/o/r/blob/main/a/b.gguf?download=true", HubName(repo="o/r",
                                                                       file="a/b.gguf")),
    ],
)  # fmt: skip
def test_name_is_taken_apart(text: str, expected: HubName) -> None:
    assert is_hub_name(text)
    assert parse_hub_name(text) == expected
    assert is_hub_name(Path(text)), "as the command line passes it on"
    assert parse_hub_name(Path(text)) == expected
    if text.lower().startswith("hf:"):
        assert parse_hub_name(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["model.gguf", "./hf:o/r", "o/r", "", "hf", "https://x.org/a/b", 5]
)
def test_what_is_no_hub_name(text: object) -> None:
    assert not is_hub_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "hf:", "hf:o", "hf:o/", "hf:/r", "hf:o/r:", "hf:o/r: ", "hf:o/r:a:b", "hf:o/..", "hf:../r",
        "hf:o/r/..", "hf:o/r/../x.gguf", "hf:o/r//x.gguf", "hf:o/r/x.bin", "hf:o/r@", "hf:o/r@../x",
        "hf:o/r@a\\b", "hf:o/r:Q\n4", "hf:o/r\x1b[31m", "hf:o/" + "r" * 200, "hf:ö/r", "hf:o/-r",
        "hf:o/r:" + "Q" * 2000, "hf:o/r:Q4 K", "hf:a--b/r", "https://huggingface.co/o",
        "https://huggingface.co/o/r/discussions/3",
    ],
)  # fmt: skip
def test_wrong_name_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(RequestError, match="form is hf:OWNER/REPO|revision") as error:
        parse_hub_name(text)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "path",
    ["/a.gguf", "../a.gguf", "a/../b.gguf", "a//b.gguf", "./a.gguf", "a\\b.gguf", "C:a.gguf",
     "a\x00.gguf", "a\n.gguf", "a\u202e.gguf", " a.gguf", "x" * 300 + ".gguf", ""],
)  # fmt: skip
def test_paths_that_could_leave_their_folder_are_no_choices(path: str) -> None:
    assert not is_safe_path(path)
    assert choices([RemoteFile(path=path, n_bytes=1, etag="0" * 64)]) == []


# --- choices


def test_choices_are_models_with_labels_and_sizes() -> None:
    found = {choice.label: choice for choice in choices(K25)}
    assert list(found) == ["BF16", "Q4_0", "UD-Q2_K_XL", "UD-TQ1_0"]
    assert len(found["UD-TQ1_0"].files) == 5
    assert str(found["UD-TQ1_0"]) == "UD-TQ1_0 240.0 GB"


@pytest.mark.parametrize(
    ("listing", "quant", "expected"),
    [
        (K25, "UD-TQ1_0", "UD-TQ1_0/Kimi-K2.5-UD-TQ1_0-00001-of-00005.gguf"),
        (K25, "ud-tq1_0", "UD-TQ1_0/Kimi-K2.5-UD-TQ1_0-00001-of-00005.gguf"),
        (K25, "TQ1_0", "UD-TQ1_0/Kimi-K2.5-UD-TQ1_0-00001-of-00005.gguf"),
        (K25, "Q4_0", "Q4_0/Kimi-K2.5-Q4_0-00001-of-00012.gguf"),
        (FLASH, "Q4_K_M", "GLM-4.7-Flash-Q4_K_M.gguf"),
        (FLASH, "Q4_K_XL", "GLM-4.7-Flash-UD-Q4_K_XL.gguf"),
        (FLASH, "q8_0", "GLM-4.7-Flash-Q8_0.gguf"),
        (FLASH, "GLM-4.7-Flash-Q8_0", "GLM-4.7-Flash-Q8_0.gguf"),
        (files("m.Q4_0.gguf", "m.UD-Q4_0.gguf"), "Q4_0", "m.Q4_0.gguf"),
        (files("a.i1-IQ2_M.gguf", "a.Q2_K.gguf"), "IQ2_M", "a.i1-IQ2_M.gguf"),
        (files("x/Q4_X/model.gguf", "x/Q2_K/model.gguf"), "Q4_X", "x/Q4_X/model.gguf"),
        (files("only.gguf"), None, "only.gguf"),
        (files("only-Q8_0.gguf", "mmproj-only-f16.gguf", "only.imatrix.gguf"), None,
         "only-Q8_0.gguf"),
    ],
)  # fmt: skip
def test_quant_chooses(listing: list[RemoteFile], quant: str | None, expected: str) -> None:
    choice = choose(HubName(repo="o/r", quant=quant), listing)
    assert choice.files[0].path == expected
    assert choice.missing == ""


def test_parts_come_in_order_and_belong_to_one_folder() -> None:
    listing = files(shards("b/", "m-Q8_0", 3, 3), shards("a/", "m-Q8_0", 3, 3))
    (choice,) = [c for c in choices(reversed(listing)) if c.files[0].path.startswith("b/")]
    assert [f.path for f in choice.files] == [f"b/m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(HubError, match=r"2 models to choose from: a/m-Q8_0 3\.0 GB, b/m-Q8_0"):
        choose(HubName(repo="o/r"), listing)
    assert choose(HubName(repo="o/r", quant="a/m-Q8_0"), listing).files[0].path.startswith("a/")
    assert choose(HubName(repo="o/r", quant="a"), listing).files[0].path.startswith("a/")


@pytest.mark.parametrize(
    ("name", "listing", "words"),
    [
        (HubName(repo="o/r"), K25, ["4 models", "UD-TQ1_0 240.0 GB, UD-Q2_K_XL 375.0 GB",
                                    "say hf:o/r:"]),
        (HubName(repo="o/r", quant="Q4_K"), FLASH, ["could be", "Q4_K_M 18.3 GB", "Q4_K_S 17.2 GB",
                                                    "hf:o/r/GLM-4.7-Flash-Q4_K"]),
        (HubName(repo="o/r", quant="Q9"), FLASH, ["nothing in o/r is called Q9", "Q8_0 31.8 GB"]),
        (HubName(repo="o/r", quant="Q4"), FLASH, ["could be"]),
        (HubName(repo="o/r", quant="_0"), FLASH, ["nothing"]),
        (HubName(repo="o/r", file="GLM-4.7-Flash-Q8_1.gguf"), FLASH,
         ["did you mean GLM-4.7-Flash-Q8_0.gguf?"]),
        (HubName(repo="o/r"), files("a.safetensors", "b.safetensors", "config.json"),
         ["holds no GGUF model (2 files in other formats)", "-GGUF"]),
        (HubName(repo="o/r-GGUF"), [], ["holds no GGUF model"]),
        (HubName(repo="o/r", quant="Q8_0"), files(shards("", "m-Q8_0", 9, 9, skip=4),
                                                  "m-Q2_K.gguf"),
         ["Q8_0 is incomplete", "part 4 of 9 missing", "choose another: Q2_K 1.0 GB"]),
        (HubName(repo="o/r"), files(shards("", "m-Q8_0", 2, 9, skip=1)),
         ["part 1 of 2 missing", "choose another: nothing complete"]),
    ],
)  # fmt: skip
def test_doubt_is_one_line_with_the_choices(
    name: HubName, listing: list[RemoteFile], words: list[str]
) -> None:
    with pytest.raises(HubError) as error:
        choose(name, listing)
    message = str(error.value)
    assert "\n" not in message
    for part in words:
        assert part in message


def test_without_quant_the_only_complete_model_is_taken() -> None:
    listing = files(shards("", "m-Q8_0", 9, 9, skip=4), "m-Q2_K.gguf")
    assert choose(HubName(repo="o/r"), listing).label == "Q2_K"


def test_sham_shard_counts_cost_nothing() -> None:
    listing = files(*(f"m{i}-00001-of-99999.gguf" for i in range(2000)))
    with pytest.raises(HubError, match="parts 2, 3, 4, 5, 6, 7, 8, 9 and 99990 more of 99999"):
        choose(HubName(repo="o/r", quant="m7"), listing)
    with pytest.raises(HubError) as error:
        choose(HubName(repo="o/r"), listing)
    assert len(str(error.value)) < 8000


@pytest.mark.parametrize("n_bytes", [-1, 2**60])
def test_impossible_sizes_are_no_choices(n_bytes: int) -> None:
    assert choices([RemoteFile(path="a.gguf", n_bytes=n_bytes, etag="0" * 64)]) == []


def test_a_part_of_a_repository_is_enough_only_beyond_doubt() -> None:
    cached = files("m-Q4_K_M.gguf", shards("", "m-Q8_0", 2, 2, skip=1))
    assert sure_choice(HubName(repo="o/r", quant="q4_k_m"), cached) is not None
    assert sure_choice(HubName(repo="o/r"), cached) is not None
    assert sure_choice(HubName(repo="o/r", file="m-Q4_K_M.gguf"), cached) is not None
    assert sure_choice(HubName(repo="o/r", quant="Q4_K"), cached) is None, "the hub may have Q4_K"
    assert sure_choice(HubName(repo="o/r", quant="Q8_0"), cached) is None, "a part is missing"


def test_small_models_have_a_size_in_a_list() -> None:
    (choice,) = choices([RemoteFile(path="m-Q8_0.gguf", n_bytes=13_700_000)])
    assert str(choice) == "Q8_0 13.7 MB"
