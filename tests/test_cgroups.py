"""Limits of containers, on trees of files as the kernel would show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import kimi_offload
from offload import hardware
from offload.cgroups import Limits, read_limits
from offload.hardware import CpuInfo, HardwareProfile, probe

MIB = 1 << 20
V2 = "31 23 0:28 {base} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
NO_LIMIT = "9223372036854771712"


def tree(root: Path, own: str, mounts: str, files: Mapping[str, object]) -> Path:
    """A root folder with /proc/self and the given files below /sys/fs/cgroup."""
    process = root / "proc/self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(own)
    (process / "mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_nested_groups_of_version_2_give_the_tightest_of_all_levels(tmp_path: Path) -> None:
    files = {
        "a/cpu.max": "250000 100000",
        "a/b/cpu.max": "max 100000",
        "a/b/c/cpu.max": "400000 100000",
        "a/memory.max": 8 * MIB,
        "a/memory.current": 7 * MIB,
        "a/b/memory.max": "max",
        "a/b/c/memory.max": 6 * MIB,
        "a/b/c/memory.current": 2 * MIB,
    }
    limits = read_limits(tree(tmp_path, "0::/a/b/c\n", V2.format(base="/"), files))
    assert (limits.cpus, limits.whole_cpus) == (2.5, 2)
    assert limits.cpus_from == "/sys/fs/cgroup/a/cpu.max"
    # the smallest limit is the inner one's, the least that is free the outer one's
    assert limits.memory == 6 * MIB
    assert limits.memory_from == "/sys/fs/cgroup/a/b/c/memory.max"
    assert limits.memory_free == 1 * MIB


def test_inside_a_namespace_the_own_group_is_the_mount(tmp_path: Path) -> None:
    files = {"cpu.max": "150000 100000", "memory.max": MIB, "memory.current": 0}
    limits = read_limits(tree(tmp_path, "0::/\n", V2.format(base="/"), files))
    assert (limits.cpus, limits.memory, limits.memory_free) == (1.5, MIB, MIB)


@pytest.mark.parametrize("own", ["/../sibling", "/elsewhere/x", "/gone"])
def test_a_group_outside_the_mount_counts_as_the_mount(tmp_path: Path, own: str) -> None:
    files = {"cpu.max": "300000 100000"}
    mounts = V2.format(base="/docker/1" if own == "/elsewhere/x" else "/")
    assert read_limits(tree(tmp_path, f"0::{own}\n", mounts, files)).cpus == 3


def test_trees_of_version_1(tmp_path: Path) -> None:
    own = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1/inner\n1:name=systemd:/\n0::/\n"
    mounts = (
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpu\n"
        "34 31 0:31 /docker/1 /sys/fs/cgroup/me\\040mory rw - cgroup cgroup rw,memory\n"
        "35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "short line\n"
    )
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/cpu.cfs_period_us": 100000,
        "cpu,cpuacct/docker/1/cpu.cfs_quota_us": 350000,
        "cpu,cpuacct/docker/1/cpu.cfs_period_us": 100000,
        "me mory/memory.limit_in_bytes": 4 * MIB,
        "me mory/memory.usage_in_bytes": 3 * MIB,
        "me mory/memory.memsw.limit_in_bytes": 6 * MIB,
        "me mory/inner/memory.memsw.limit_in_bytes": NO_LIMIT,
        "me mory/memory.stat": f"inactive_file 0\ntotal_inactive_file {MIB}\ntotal_active_file 0",
        "me mory/inner/memory.limit_in_bytes": NO_LIMIT,
    }
    limits = read_limits(tree(tmp_path, own, mounts, files))
    assert (limits.cpus, limits.whole_cpus) == (3.5, 3)
    assert (limits.memory, limits.memory_free) == (4 * MIB, 2 * MIB)
    assert limits.memory_from == "/sys/fs/cgroup/me mory/memory.limit_in_bytes"
    assert limits.swap == 2 * MIB


def test_a_group_that_is_gone_leaves_the_limits_above_it(tmp_path: Path) -> None:
    files = {"a/cpu.max": "200000 100000", "cpu.max": "300000 100000"}
    own = "0::/a/b (deleted)\n"
    assert read_limits(tree(tmp_path, own, V2.format(base="/"), files)).cpus == 2


def test_the_soft_limit_counts_and_page_cache_is_free(tmp_path: Path) -> None:
    stat = f"anon 5\nfile {3 * MIB}\nshmem {MIB}\ninactive_file {MIB}\nactive_file {MIB}"
    files = {
        "memory.max": 9 * MIB,
        "memory.high": 5 * MIB,
        "memory.current": 4 * MIB,
        "memory.stat": stat,
        "memory.swap.max": 0,
    }
    limits = read_limits(tree(tmp_path, "0::/\n", V2.format(base="/"), files))
    assert (limits.memory, limits.memory_free, limits.swap) == (5 * MIB, 3 * MIB, 0)
    (tmp_path / "sys/fs/cgroup/memory.stat").write_text(f"file {2 * MIB}\nshmem {MIB}\n")
    assert read_limits(tmp_path).memory_free == 2 * MIB


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max", "memory.max": "max", "memory.swap.max": "max"},
        {"cpu.max": "", "memory.max": "lots"},
        {"cpu.max": "100000 0"},
        {"cpu.max": "0 100000"},
        {"memory.max": "-1"},
    ],
)
def test_what_sets_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert read_limits(tree(tmp_path, "0::/\n", V2.format(base="/"), files)) == Limits()


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()
    tree(tmp_path, "no colons\n1:\n", "", {})
    assert read_limits(tmp_path) == Limits()


def test_less_than_one_processor_is_one_thread(tmp_path: Path) -> None:
    files = {"cpu.max": "30000 100000"}
    assert read_limits(tree(tmp_path, "0::/\n", V2.format(base="/"), files)).whole_cpus == 1


def test_the_machine_is_no_larger_than_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(
        cpus=1.9, cpus_from="/x/cpu.max", memory=64 * MIB, memory_from="/x/memory.max",
        memory_free=3 * MIB, swap=0,
    )  # fmt: skip
    monkeypatch.setattr(hardware, "read_limits", lambda: limits)
    found = probe()
    assert found.cpu.usable == 1
    assert (found.cpu.ram_total, found.cpu.ram_free) == (64 * MIB, 3 * MIB)
    said = found.container()
    for part in ("1.9 processors (/x/cpu.max)", "64.0 MiB of memory (/x/memory.max)", "no swap"):
        assert part in said
    table = CliRunner().invoke(kimi_offload.kimi_offload, ["doctor"]).output
    assert "1.9 processors (/x/cpu.max), 64.0 MiB of memory (/x/memory.max), no swap" in table
    monkeypatch.setattr(hardware, "read_limits", Limits)
    assert probe().container() == "no limits"


def test_threads_are_the_least_of_affinity_cores_and_quota() -> None:
    cpu = CpuInfo(name="x", cores=8, threads=16, usable=16, ram_total=1, ram_free=1, simd="generic")
    assert HardwareProfile(cpu=cpu).default_threads()[0] == 8
    few = replace(cpu, usable=3)
    assert HardwareProfile(cpu=few).default_threads()[0] == 3
    quota = replace(few, limits=Limits(cpus=3.7, cpus_from="/g/cpu.max"))
    threads, why = HardwareProfile(cpu=quota).default_threads()
    assert threads == 3
    assert "3.7" in why
    assert "/g/cpu.max" in why
