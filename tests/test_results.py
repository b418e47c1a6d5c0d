"""Pages of results: what `bench --json` wrote, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offload.bench import machine, results, shapes, summary
from offload.bench.layer_bench import PARTS
from offload.bench.layout import choose_layout
from offload.hardware import probe
from offload.timing import Timing


def shape_result(experts: str = "TQ1_0", *, compare: bool = True) -> dict[str, Any]:
    """A K2.5 layer with every part at 2 ms, llama.cpp's at 3; nothing is measured."""
    types = shapes.types_named(experts, "Q4_K", "Q4_K")
    layout = choose_layout(shapes.KIMI_K25, types, layers=1, cache=1 << 20, free=64 << 30)
    sides = {}
    for name, ms in (("ours", 2.0), ("llama_cpp", 3.0))[: 1 + compare]:
        samples = {part: Timing([1e-3 * ms]) for part in (*PARTS, "layer", "head", "prefill")}
        sides[name] = summary.side(layout, samples)
    facts = machine.describe(probe(), 2) | machine.Watch(2).finish()
    facts |= {"cpu": "A | B", "others_share": 0.01, "warnings": ["other programs ran"]}
    read = Timing([1 / 30e9])
    made = summary.summarise(layout, "kimi-k2.5", facts, read, read, sides, ["a note"])
    made["shape"]["depth"] = 512
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


def model_result() -> dict[str, Any]:
    shape = shape_result()
    work = {"decode 0": {"tps": 10.0, "tps_best": 11.0, "runs": 3}}
    model = {"path": "/home/me/a.gguf", "name": "small", "layers": 4}
    return shape | {"kind": "model", "model": model, "ours": work, "llama_cpp": work,
                    "ratio": {"decode 0": 1.0}}  # fmt: skip


def test_a_page_has_one_row_per_run_and_all_tables_of_each() -> None:
    text = results.page([shape_result(), shape_result("IQ1_S:Q4_K", compare=False), model_result()])
    assert text.startswith("# A | B\n")
    rows = [line for line in text.splitlines() if line.startswith(("| TQ1_0 ", "| IQ1_S:Q4_K "))]
    assert [row.split(" | ")[2:5] for row in rows] == [["2.00", "3.00", "1.50"], ["2.00", "", ""]]
    assert text.count("| whole layer |") == 2
    assert "## small (a.gguf)\n" in text
    assert text.count("- WARNING: other programs ran") == 3
    assert "| processor | A \\| B |" in text


def test_a_pages_tables_are_as_wide_as_their_heads() -> None:
    blocks = results.page([shape_result(), model_result()]).split("\n\n")
    for block in blocks:
        lines = block.replace("\\|", "").splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(shape_result()))
    assert results.main([str(file)]) == 0
    assert capsys.readouterr().out == results.page([shape_result()])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "run.json: "), ("[]", "is not what"), ('{"kind": "x"}', "is not what")],
)
def test_other_files_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.json"
    file.write_text(text)
    for names in ([str(file)], [str(tmp_path / "none.json")], []):
        assert results.main(names) == 1
    assert message in capsys.readouterr().err


def test_two_machines_are_refused() -> None:
    other = shape_result()
    other["machine"] |= {"threads": 4}
    with pytest.raises(results.RequestError, match="threads is 2 in the first run and 4"):
        results.page([shape_result(), other])
