"""Memory for weights, and the machine's shape: fake /sys trees, systems that refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from offload import memory as module
from offload import probe
from offload.errors import PlanError
from offload.hardware import CpuInfo, HardwareProfile
from offload.memory import Memory, MemoryMode
from offload.topology import Core, OtherWork, Topology, cpu_list, read_topology

MIB = 1 << 20


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mmap", "resident", "hugepages"])
def test_memory_is_zeroed_aligned_and_its_own(mode: MemoryMode) -> None:
    memory = Memory(mode)
    blocks = [memory.allocate(n) for n in (1, 4096, 3 * MIB + 5)]
    for value, block in enumerate(blocks, 1):
        assert block.ctypes.data % 64 == 0
        assert not block.any()
        block[:] = value
    assert [int(block.max()) for block in blocks] == [1, 2, 3]
    assert memory.n_bytes == 3 * MIB + 4102
    notes = memory.settle()
    assert len(notes) == (mode != "mmap")
    assert all("MiB" in note for note in notes)


def test_memory_that_nobody_used_needs_no_words() -> None:
    assert Memory("resident", (0, 1)).settle() == []


def test_too_much_memory_is_refused_with_the_amount() -> None:
    with pytest.raises(PlanError, match=r"refuses 134217728\.00 GiB of memory for weights"):
        Memory("mmap").allocate(1 << 57)


def test_locks_say_what_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, limit, words in (
        (True, None, "locked in RAM"),
        (False, 8 * MIB, "not locked there: the system allows 8.0 MiB at most"),
        (False, None, "pages may be swapped out"),
    ):
        monkeypatch.setattr(module, "lock", lambda address, size, allowed=allowed: allowed)
        monkeypatch.setattr(module, "lock_limit", lambda limit=limit: limit)
        memory = Memory("resident")
        memory.allocate(100)
        assert words in memory.settle()[0]


def test_swapped_bytes_are_the_kernels_figure(tmp_path: Path) -> None:
    status = tmp_path / "status"
    assert module.swapped_bytes(status) == 0
    status.write_text("VmRSS:\t  5 kB\nVmSwap:\t  2048 kB\nThreads:\t1\n")
    assert module.swapped_bytes(status) == 2 * MIB
    status.write_text("VmSwap:\n")
    assert module.swapped_bytes(status) == 0
    assert module.swapped_bytes() >= 0


def test_huge_pages_say_how_much_is_in_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = Memory("hugepages")
    block = memory.allocate(4 * MIB)
    low = block.ctypes.data
    smaps = tmp_path / "smaps"
    smaps.write_text(
        f"{low - 4096:x}-{low + 6 * MIB:x} rw-p 00000000 00:00 0 \n"
        "Rss:                4096 kB\nAnonHugePages:      2048 kB\nPrivate_Hugetlb:       0 kB\n"
        f"{low + 8 * MIB:x}-{low + 9 * MIB:x} rw-p 00000000 00:00 0 \nAnonHugePages:    512000 kB\n"
    )
    monkeypatch.setattr(module, "SMAPS", smaps)
    monkeypatch.setattr(module, "thp_mode", lambda: "madvise")
    assert "2.0 MiB of 4.0 MiB are in them; memory is too fragmented" in memory.settle()[0]
    monkeypatch.setattr(module, "SMAPS", tmp_path / "none")
    assert "asked for 4.0 MiB" in memory.settle()[0]
    monkeypatch.setattr(module, "thp_mode", lambda: "never")
    assert "not available here" in memory.settle()[0]
    assert "ordinary pages are used for 4.0 MiB" in memory.settle()[0]


def test_kernel_files_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text, mode in (("always [madvise] never\n", "madvise"), ("[never]\n", "never"), ("", None)):
        path.write_text(text)
        assert module.thp_mode(path) == mode
    assert module.thp_mode(tmp_path / "none") is None
    path.write_text("HugePages_Free:  10\nHugePages_Rsvd:  4\nHugepagesize:  2048 kB\n")
    assert module.free_hugetlb(path) == 6 * 2 * MIB
    path.write_text("HugePages_Free:  10\nHugepagesize:  1048576 kB\n")
    assert module.free_hugetlb(path) == 0
    assert module.free_hugetlb(tmp_path / "none") == 0


@pytest.mark.parametrize("allowed", [True, False])
def test_memory_is_interleaved_over_nodes_where_allowed(allowed: bool) -> None:
    asked: list[tuple[int, int, int]] = []

    def bind(address: int, n_bytes: int, mask: int) -> bool:
        asked.append((address, n_bytes, mask))
        return allowed

    memory = Memory("mmap", (0, 2), bind)
    block = memory.allocate(4096)
    assert asked == [(block.ctypes.data, 4096, 0b101)]
    (note,) = memory.settle()
    assert ("interleaved over 2 nodes" in note) == allowed
    assert ("numactl" in note) != allowed


def test_binding_to_the_node_that_exists_works_or_is_refused() -> None:
    block = Memory("mmap").allocate(1 << 16)
    assert module.interleave(block.ctypes.data, 1 << 16, 1) in (True, False)
    assert not module.interleave(block.ctypes.data, 1 << 16, 1 << 900)  # no such node
    block[:] = 1


def test_advice_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8)
    path.write_bytes(data.tobytes())
    mapped = np.memmap(path, np.uint8, "r")
    module.advise(mapped[100:40_000], "need")
    module.advise(mapped[100:40_000], "drop")
    module.advise(mapped[100:120], "drop")
    module.advise(mapped[:0], "need")
    np.testing.assert_array_equal(mapped, data)


# --- the machine ------------------------------------------------------------------------------


def tree(
    root: Path, siblings: list[str], *, files: dict[str, str] | None = None, nodes: str = "0"
) -> Path:
    """A /sys/devices tree: the siblings of each logical core, and other files."""
    texts = {"system/cpu/online": f"0-{len(siblings) - 1}", "system/node/has_memory": nodes}
    texts |= {
        f"system/cpu/cpu{i}/topology/thread_siblings_list": text for i, text in enumerate(siblings)
    }
    for name, text in (texts | (files or {})).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def machine(topology: Topology, usable: int | None = None) -> HardwareProfile:
    threads = sum(len(core.cpus) for core in topology.cores)
    cpu = CpuInfo(
        name="imaginary", cores=len(topology.cores), threads=threads, usable=usable or threads,
        ram_total=1, ram_free=1, simd="avx2", topology=topology,
    )  # fmt: skip
    return HardwareProfile(cpu=cpu)


def test_lists_of_cores() -> None:
    assert cpu_list("0-2,8") == (0, 1, 2, 8)
    assert cpu_list("") == cpu_list(None) == cpu_list("x") == ()


def test_hyper_threads_are_one_core(tmp_path: Path) -> None:
    found = read_topology(tree(tmp_path, ["0,4", "1,5", "2,6", "3,7"] * 2, nodes="0-1"))
    assert [core.cpus for core in found.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert found.nodes == (0, 1)
    hardware = machine(found)
    assert hardware.default_threads()[0] == 4
    assert "per physical core" in hardware.default_threads()[1]
    cpus, why = hardware.pinning(4)
    assert cpus is not None
    assert cpus[1] == {1, 5}
    assert "one to a physical core" in why
    assert "2 nodes: packed and resident weights are interleaved" in hardware.numa()


def test_intels_efficiency_cores_are_left_out(tmp_path: Path) -> None:
    siblings = ["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]
    files = {"cpu_core/cpus": "0-3", "cpu_atom/cpus": "4-7"}
    found = read_topology(tree(tmp_path, siblings, files=files))
    assert [core.cpus for core in found.fast] == [(0, 1), (2, 3)]
    threads, why = machine(found).default_threads()
    assert threads == 2
    assert "the 4 efficiency cores" in why
    cpus, _ = machine(found).pinning(3)  # as asked: the third goes to an efficiency core
    assert cpus is not None
    assert cpus[2] == {4}


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_slow_cores_are_efficiency_cores(tmp_path: Path, name: str) -> None:
    speeds = [1024, 1024, 900, 400]
    files = {f"system/cpu/cpu{i}/{name}": str(speed) for i, speed in enumerate(speeds)}
    found = read_topology(tree(tmp_path, ["0", "1", "2", "3"], files=files))
    assert [core.is_efficient for core in found.cores] == [False, False, False, True]


def test_cores_that_are_all_alike_are_no_efficiency_cores(tmp_path: Path) -> None:
    files = {f"system/cpu/cpu{i}/cpu_capacity": "1024" for i in range(2)}
    assert len(read_topology(tree(tmp_path, ["0", "1"], files=files)).fast) == 2
    odd = tree(tmp_path / "odd", ["0"], files={"cpu_core/cpus": "0", "cpu_atom/cpus": "0"})
    assert len(read_topology(odd).fast) == 1


def test_a_system_that_says_nothing_is_one_node_without_cores(tmp_path: Path) -> None:
    found = read_topology(tmp_path)
    assert found == Topology(cores=(), nodes=(0,))
    hardware = machine(found, usable=1)
    assert hardware.pinning(4)[0] is None
    assert hardware.numa() == "1 node: nothing needs doing"


def test_pinning_is_left_out_where_it_would_hurt() -> None:
    four = machine(Topology(cores=tuple(Core(cpus=(i,)) for i in range(4))))
    assert four.pinning(4)[0] is not None
    assert four.pinning(4, others=0.1)[0] is not None
    for reason, (cpus, why) in {
        "as asked": four.pinning(4, False),
        "the only thread": four.pinning(1),
        "share 4 cores": four.pinning(5),
        "other programs use 60%": four.pinning(4, others=0.6),
        "this process has 2": replace(four, cpu=replace(four.cpu, usable=2)).pinning(2),
    }.items():
        assert cpus is None
        assert reason in why
    assert four.pinning(4, True, others=0.6)[0] is not None


def test_this_machine_can_be_read() -> None:
    hardware = probe()
    assert hardware.numa()
    assert hardware.huge_pages()
    assert OtherWork().share(hardware.cpu.cores) is None  # too early to say
