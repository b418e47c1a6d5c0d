"""Slab: parts of one allocation; no two pieces overlap, what is free is found again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import PlanError
from offload.gpu.slab import Part, Slab


class Gpu:
    """Memory that is only counted."""

    def __init__(self) -> None:
        self.taken: dict[int, int] = {}

    def alloc(self, n_bytes: int) -> int:
        self.taken[4096] = n_bytes
        return 4096

    def free(self, address: int) -> None:
        del self.taken[address]


def test_parts_share_one_allocation() -> None:
    gpu = Gpu()
    slab = Slab(gpu, (10 << 20) + 100)  # type: ignore[arg-type]
    assert gpu.taken == {4096: 10 << 20}
    weights, kv = slab.part("weights", 6 << 20), slab.part("KV", (1 << 20) + 1)
    assert (weights.start, kv.start) == (4096, 4096 + (6 << 20))
    assert slab.left == (10 << 20) - (7 << 20) - 256
    with pytest.raises(PlanError, match="VRAM for experts") as error:
        slab.part("experts", 4 << 20)
    assert "4.0 MiB are wanted, 3.0 MiB of 10.0 MiB are left (weights" in str(error.value)
    slab.close()
    assert not gpu.taken


def test_full_part_says_its_numbers() -> None:
    part = Part("workspace", 0, 4 << 20)
    first, _, third = (part.alloc(1 << 20) for _ in range(3))
    part.free(first)
    assert (part.used, part.largest_gap) == (2 << 20, 1 << 20)
    with pytest.raises(PlanError, match="VRAM for workspace") as error:
        part.alloc(2 << 20)
    assert "the largest gap has 1.0 MiB (2.0 MiB of 4.0 MiB are in use)" in str(error.value)
    part.free(third)
    assert part.largest_gap == 2 << 20
    assert part.alloc(1) == first


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3000)), max_size=60))
def test_pieces_never_overlap_and_nothing_is_lost(steps: list[tuple[bool, int]]) -> None:
    part = Part("kv", 512, 8192)
    held: dict[int, int] = {}
    for give_back, n in steps:
        if give_back and held:
            address = sorted(held)[n % len(held)]
            del held[address]
            part.free(address)
            continue
        fits = n <= part.largest_gap and part.largest_gap > 0
        try:
            address = part.alloc(n)
        except PlanError:
            assert not fits
            continue
        assert fits
        assert address % 256 == 0
        for there, size in held.items():
            assert address + max(n, 1) <= there or there + size <= address
        assert 512 <= address <= address + n <= 512 + 8192
        held[address] = max(n, 1)
        assert part.end == max(a + -(-size // 256) * 256 for a, size in held.items())
        assert part.used == sum(-(-size // 256) * 256 for size in held.values())
    for address in list(held):
        part.free(address)
    assert (part.used, part.largest_gap, part.end) == (0, 8192, 512)
