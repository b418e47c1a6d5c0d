"""A kernel in Numba's CUDA simulator leaves the same memory as its PTX on ptx_machine.py.

Each template runs once, byte for byte. Sums of float16 products on tensor cores have no order:
inputs of attention are such that scores are exact in any, and sums of values (what attend_f16,
attend_q8_0 and attend_expanded leave) are compared within 2e-6 of the largest.
"""

from __future__ import annotations

import numpy as np
import pytest
from cudasim_attention import ATTENTION, EXPANDED, EXPANDED_SHAPE, SHAPE
from cudasim_matrices import KINDS, MATRICES
from cudasim_record import Recorder
from cudasim_rows import INTRINSICS, ROWS

from quant.cuda import intrinsics
from quant.cuda.exchange import EXCHANGE
from quant.cuda.kernels import Kernel, of_type
from quant.cuda.norms import NORM, RECORD, SWIGLU
from quant.cuda.probes import PROBES
from quant.cuda.router import COMBINE, ROUTE, SORT

Array = np.ndarray
Simulated = tuple[Recorder, Array, list[str]]
CASES = MATRICES | ROWS | ATTENTION | INTRINSICS
TOLERANCE = 2e-6


def places() -> dict[Kernel, list[object]]:
    """See Recorder."""
    shape = [SHAPE.heads, SHAPE.rank, SHAPE.rope, SHAPE.latent, SHAPE.width]
    named = {"split": SHAPE.split, "strands": SHAPE.strands}
    of: list[tuple[dict[str, Kernel], str, list[object]]] = [
        *(
            (of_type(kind), "kernels.of_type", [[kind.name], {}])
            for kind in KINDS
        ),
        (SHAPE.kernels, "attend.of_shape", [shape, named]),
        (EXPANDED, "attend_expanded.of_shape", [list(EXPANDED_SHAPE), {}]),
        (PROBES, "probes.PROBES", []),
    ]  # fmt: skip
    found: dict[Kernel, list[object]] = {}
    for kernels, where, call in of:
        module, name = where.split(".")
        for key, kernel in kernels.items():
            found[kernel] = [f"quant.cuda.{module}", name, *call, key]
    for kernel, where in (
        (NORM, "norms.NORM"), (RECORD, "norms.RECORD"), (SWIGLU, "norms.SWIGLU"),
        (ROUTE, "router.ROUTE"), (SORT, "router.SORT"), (COMBINE, "router.COMBINE"),
        (EXCHANGE, "exchange.EXCHANGE"),
    ):  # fmt: skip
        module, name = where.split(".")
        found[kernel] = [f"quant.cuda.{module}", name]
    return found


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """(launches on ptx_machine.py, memory of the simulator, its intrinsics)."""
    recorder = Recorder(places())
    for name, launch in CASES.items():
        recorder.case(name, launch)
    return recorder, *recorder.repeat(tmp_path_factory.mktemp("launches"))


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_simulator_and_ptx_leave_the_same(name: str, simulated: Simulated) -> None:
    recorder, memory, _ = simulated
    case = recorder.cases[name]
    found, expected = memory[case.start : case.end], recorder.slab[case.start : case.end].copy()
    if case.sums:
        start = recorder.slab.ctypes.data + case.start
        got, right = case.sums.of(found, start), case.sums.of(expected, start)
        assert np.isfinite(right).all()
        assert np.abs(got - right).max() <= TOLERANCE * np.abs(right).max()
        right[:] = got
    np.testing.assert_array_equal(found, expected)


@pytest.mark.long
def test_every_template_has_run(simulated: Simulated) -> None:
    run = {kernel.function.__code__ for kernel in simulated[0].launched}
    assert not [kernel.name for kernel in places() if kernel.function.__code__ not in run]


@pytest.mark.long
def test_the_simulator_knows_every_intrinsic(simulated: Simulated) -> None:
    kind = type(intrinsics.u32)
    public = [name for name, value in vars(intrinsics).items() if isinstance(value, kind)]
    assert simulated[2] == sorted([*public, "table"])
