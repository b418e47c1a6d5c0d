"""The page's files and GET /machine, without a browser: see test_page_browser.py for the rest."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from page_server import Fake, serving

import offload
from offload.expert_stats import ExpertStats, LayerTiers
from offload.hardware import probe
from offload.layer_set import Layers
from offload.plan import ExpertSlots, Placement
from offload.rate_profiles import shipped
from offload.self_check import Conditions
from offload.server.app import make_app
from offload.server.desk import Desk
from offload.server.host import Host
from offload.server.machine_check import KnownRates, check
from offload.server.machine_look import Look, experts_of, look, routed_bytes
from offload.server.machine_plan import (
    bytes_by_block,
    measured_bytes,
    plan_facts,
    plan_rows,
    what_is_off,
)
from offload.server.page import FOLDER, TYPES, files
from offload.server.security import Rules
from offload.stats import RunStats

OWN = [p for p in sorted(FOLDER.rglob("*")) if p.suffix in TYPES and "vendor" not in p.parts]
VENDOR = FOLDER / "vendor"
QUESTION = {"messages": [{"role": "user", "content": "What is a routed expert?"}], "max_tokens": 40}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    host = Host("kimi-mini", parallel=2, queue=4)
    with offload.load(kv_tokens=4096) as engine:
        host._desk = Desk(engine, parallel=2, queue=4)
        yield host
        host.desk.close()


@pytest.fixture(scope="module")
def address(host: Host) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(make_app(host, Rules())) as address:
        patch.setattr("offload.server.machine.FRESH", 0.0)
        yield address


class Got(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> str:
        return json.loads(self.body)["error"]["message"]


def get(
    address: str,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    body: bytes | None = None,
) -> Got:
    request = urllib.request.Request(address, body, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return Got(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Got(error.code, error.headers, error.read())


def machine(address: str, seen: int = -1) -> dict[str, Any]:
    return json.loads(get(f"{address}/machine?seen={seen}").body)


def ask(address: str) -> dict[str, Any]:
    body = json.dumps(QUESTION | {"temperature": 0}).encode()
    headers = {"Content-Type": "application/json"}
    return json.loads(get(f"{address}/v1/chat/completions", headers, "POST", body).body)


# --- files ----------------------------------------------------------------------------------------


def test_page_is_served_under_a_policy_that_allows_nothing_inline_or_from_outside(address):
    answer = get(address)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"unsafe|https?:|data:|\*", policy)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_the_page_names_is_served_with_its_type(address):
    named = set()
    for path in OWN:
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"""(?:href|src)="(/page/[^"#]+)""", text))
        for relative in re.findall(r'from "(\./[^"]+)"', text):
            named.add(f"/page/{(path.parent / relative).resolve().relative_to(FOLDER)}")
    assert len(named) > 20
    for name in sorted(named):
        answer = get(f"{address}{name}")
        assert answer.status == 200, name
        assert answer.headers["content-type"] == TYPES[Path(name).suffix], name


def test_file_that_a_browser_has_is_not_sent_again(address):
    first = get(f"{address}/page/main.js")
    again = get(f"{address}/page/main.js", {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    head = get(f"{address}/page/main.js", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == first.headers["content-length"]


@pytest.mark.parametrize("name", ["../page.py", "%2e%2e/page.py", "vendor/README.md", "nothing.js"])
def test_other_names_are_not_found_and_paths_are_not_told(address, name):
    answer = get(f"{address}/page/{name}")
    assert answer.status == 404
    assert "page.py" not in answer.message


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_own_file_loads_nothing_from_outside_and_has_nothing_inline(path):
    text = path.read_text(encoding="utf-8")
    outside = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not outside
    if path.suffix == ".html":
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert not re.search(
        r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write", text
    )


def test_libraries_are_those_of_the_table_with_their_licences():
    table = (VENDOR / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+)@\S+ \| [^|]+ \| `(\w{64})` \|$", table, re.MULTILINE)
    assert {name for name, _, _ in rows} == {
        path.relative_to(VENDOR).as_posix()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    for name, _, sha in rows:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == sha, name
    for package in {package for _, package, _ in rows}:
        assert (VENDOR / package.rsplit("/", 1)[-1] / "LICENSE").stat().st_size > 500
    assert sum(len(file.body) for file in files().values()) < 2_000_000


# --- /machine -------------------------------------------------------------------------------------


def test_machine_tells_what_an_answer_did(address):
    before = machine(address)
    used = ask(address)["usage"]
    after = machine(address)
    assert after["tokens"]["decoded"] - before["tokens"]["decoded"] == used["completion_tokens"]
    read = used["prompt_tokens"] - used["prompt_tokens_details"]["cached_tokens"]
    assert after["tokens"]["prompt"] - before["tokens"]["prompt"] == read
    (tier,) = after["tiers"]
    assert tier["tier"] == "mmap"
    assert tier["bytes"] - before["tiers"][0]["bytes"] > tier["predicted"] * 10
    assert tier["latest"] == pytest.approx(tier["predicted"], rel=0.05)
    assert after["check"]["compared_tokens"] == used["completion_tokens"] - 1
    assert {part["part"] for part in after["check"]["parts"]} >= {"attention", "experts", "head"}
    assert all(part["measured"] > 0 for part in after["check"]["parts"])
    assert after["slots"] == []
    assert after["parallel"] == 2
    assert {one["what"] for one in after["off"]} >= {"packed experts", "expert slots in RAM"}


def test_experts_are_sent_as_they_are_and_not_twice(address, host):
    ask(address)
    told = machine(address)["experts"]
    stats = host.engine.expert_stats
    raw = base64.b64decode(told["uses"])
    uses = np.frombuffer(raw, f"<u{told['width'] // 8}").reshape(len(told["layers"]), -1)
    assert told["layers"] == list(stats.layers)
    np.testing.assert_array_equal(uses, [layer.uses for layer in stats.layers.values()])
    assert told["vram"] is None
    assert told["slots"] is None
    assert told["asked"] == uses.sum() > 0
    assert set(machine(address, told["asked"])["experts"]) == {"began", "asked"}


def test_machine_refuses_what_is_no_number(address):
    answer = get(f"{address}/machine?seen=x")
    assert answer.status == 400
    assert "whole number" in answer.message


@pytest.mark.parametrize(
    ("conditions", "why"),
    [
        (Conditions(ram=0.0), None),
        (Conditions(ram=0.0, others=0.05), None),
        (Conditions(ram=0.0, others=0.9), "other programs use 90% of the cores"),
        (Conditions(ram=0.0, swapped=1 << 20), "parts of this process are swapped out"),
    ],
)
def test_prediction_that_is_off_is_explained_by_what_is_known(host, conditions, why):
    engine = host.engine
    slow = RunStats(decode_tokens=100, decode_seconds=1.0, block_seconds=[0, 0.2, 0.1, 0, 0.6, 0])
    known = KnownRates(rates=shipped("avx2"), source="shipped", hardware=probe())
    told = check(engine.config, engine.census(), engine.plan, known, slow, conditions=conditions)
    found = told["why"]
    assert found is None if why is None else found.endswith(why)


def test_look_that_fails_or_is_given_up_leaves_the_desk_at_work(host):
    async def looks() -> str:
        with pytest.raises(ZeroDivisionError):
            await host.desk.between_steps(lambda engine: 1 / 0)
        given_up = asyncio.ensure_future(host.desk.between_steps(lambda engine: 1))
        await asyncio.sleep(0)
        given_up.cancel()
        return await host.desk.between_steps(lambda engine: engine.config.name)

    assert asyncio.run(looks()) == "kimi-mini"


def test_who_asks_while_a_long_step_runs_gets_the_look_before(host, monkeypatch):
    monkeypatch.setattr("offload.server.machine.FRESH", 0.0)
    monkeypatch.setattr("offload.server.machine.PATIENCE", 0.05)
    let_go = threading.Event()
    with serving(make_app(host, Rules())) as address:
        machine(address)
        before = machine(address)["experts"]["asked"]
        host.desk._looks.append(lambda: let_go.wait(10) and None)
        ticket = threading.Thread(target=ask, args=(address,))
        ticket.start()
        assert machine(address)["experts"]["asked"] == before
        let_go.set()
        ticket.join()
        machine(address)
        assert machine(address)["experts"]["asked"] > before


def test_machine_needs_the_key_and_the_page_does_not(host):
    with serving(make_app(host, Rules(keys=("secret",)))) as address:
        assert get(address).status == 200
        assert get(f"{address}/page/main.js").status == 200
        assert get(f"{address}/machine").status == 401
        assert get(f"{address}/machine", {"Authorization": "Bearer secret"}).status == 200


def test_machine_says_so_while_the_model_is_loaded():
    with serving(make_app(Host("none", parallel=1, queue=1), Rules())) as address:
        answer = get(f"{address}/machine")
        assert answer.status == 503
        assert "loaded" in answer.message


def test_fake_machine_has_the_keys_of_the_real_one(address):
    with serving(Fake().app()) as fake:
        real, scripted = machine(address), machine(fake)
    real["slots"] = scripted["slots"]
    del real["experts"]["began"], scripted["experts"]["loads"]
    assert keys(real) == keys(scripted)


def keys(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: keys(value) for name, value in told.items()}
    return keys(told[0]) if isinstance(told, list) and told and isinstance(told[0], dict) else None


# --- plans with tiers -----------------------------------------------------------------------------


def stats_of(uses: np.ndarray, resident: np.ndarray, **fields: Any) -> ExpertStats:
    layers = {
        1 + i: LayerTiers(uses=u, resident=r, hits=3 + i, misses=2)
        for i, (u, r) in enumerate(zip(uses, resident, strict=True))
    }
    return ExpertStats(layers=layers, **fields)


def test_bytes_of_slots_and_disk_count_for_themselves(host):
    engine = host.engine
    plan, census = engine.plan, engine.census()
    slots = ExpertSlots(n_bytes=1 << 20, slots=96)  # of 3 layers with 64 experts: half
    on_disk = plan.placements["routed"]
    disk = replace(
        plan,
        placements={**plan.placements, "routed": replace(on_disk, tier="disk")},
        cache=slots,
    )
    facts = plan_facts(engine.config, census, disk)
    predicted = facts.predicted
    routed = bytes_by_block(census)["routed"]
    assert predicted["slots"] == pytest.approx(routed / 2)
    assert predicted["disk"] == pytest.approx(routed / 2)
    assert sum(predicted.values()) == pytest.approx(sum(bytes_by_block(census).values()))
    seen = replace(looked(host), plan=disk, bytes_read=1000, routed={"slots": 500, "disk": 100})
    read = measured_bytes(seen, facts)
    assert read == {"slots": 500, "mmap": 400, "disk": 100}
    assert "expert slots" in {row["name"] for row in plan_rows(disk)}
    assert "expert slots in RAM" not in {one["what"] for one in what_is_off(seen)}


def test_layers_on_a_gpu_are_a_row_of_their_own(host):
    plan = host.engine.plan
    base = plan.placements["attention"]
    gpu = Placement(device="cuda:0", tier="vram", n_bytes=base.n_bytes // 4, why="fits")
    shared = replace(plan, overrides={"attention": {Layers.parse("0"): gpu}})
    rows = {row["name"]: row for row in plan_rows(shared)}
    assert rows["attention, layers 0"]["tier"] == "vram"
    both = rows["attention"]["bytes"] + rows["attention, layers 0"]["bytes"]
    assert both == base.n_bytes
    facts = plan_facts(host.engine.config, host.engine.census(), shared)
    assert list(facts.predicted) == ["vram", "mmap"]


def test_experts_in_vram_and_in_slots_are_told_apart(host):
    uses = np.arange(128).reshape(2, 64) * 1000
    hot = stats_of(uses, uses % 3000 == 0, slots=40, home="disk", bytes={"vram": 7, "disk": 9})
    below = stats_of(uses, uses % 2000 == 0, slots=64, home="disk", bytes={"slots": 5, "disk": 4})
    below.hot = hot
    assert routed_bytes(below) == {"vram": 7, "slots": 5, "disk": 4}
    experts = experts_of(below, host.engine.plan)
    told = experts.json(-1)
    assert told["width"] == 32  # 127,000 uses
    assert told["hits"] == (3, 4)
    for name, step in (("vram", 3000), ("slots", 2000)):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(told[name]), np.uint8)).reshape(2, 64)
        np.testing.assert_array_equal(bits, uses % step == 0)


def test_check_says_why_it_has_no_figures(host):
    engine = host.engine
    told = check(
        engine.config, engine.census(), engine.plan, None, RunStats(),
        conditions=Conditions(ram=0.0),
    )  # fmt: skip
    assert told["parts"] == []
    assert "doctor --measure" in told["missing"]


def looked(host: Host) -> Look:
    return look(host.engine)
