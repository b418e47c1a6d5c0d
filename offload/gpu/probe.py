"""gpus(): which GPUs can be used, or why none.

Without NVIDIA's driver this costs one failing attempt to open a library.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from offload.errors import DeviceError, reason, shown
from offload.gpu.cuda_calls import NO_DEVICE, CudaCalls, CudaError

OLDEST_CUDA: Final = 12000  # that the driver must speak
BLACKWELL_CUDA: Final = 12080  # for compute capability 10.0 and newer
OLDEST: Final = 80  # sm_80
_DRIVERS: Final = {OLDEST_CUDA: "525", BLACKWELL_CUDA: "570"}
_LANE: Final = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One GPU. None: not told by the driver.

    architecture: 86 for sm_86; cuda: 12040 for 12.4; free, total: bytes of its memory, free before
    this program takes any; pcie_*: what card and slot can do; power_limit: watts.
    """

    index: int
    name: str
    architecture: int
    cuda: int
    free: int
    total: int
    driver: str | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    power_limit: float | None = None

    @property
    def pcie_rate(self) -> float | None:
        """Bytes per second one way, at most."""
        lane = _LANE.get(self.pcie_generation or 0)
        return lane and self.pcie_width and lane * self.pcie_width


def gpus(module: Any = None, nvml: Any = None) -> list[GpuFacts] | str:
    """Those that can be used; or one line, why none can.

    module, nvml: cuda.bindings.driver and cuda.bindings.nvml, imported if there is need.
    """
    try:
        if module is None:
            module, nvml = bindings(), _management()
        calls = CudaCalls(module, "NVIDIA driver")
        cuda = int(calls.call("cuDriverGetVersion"))
        if cuda < OLDEST_CUDA:
            return _too_old_driver(cuda, OLDEST_CUDA)
        calls.call("cuInit", 0)
        count = int(calls.call("cuDeviceGetCount"))
        if not count:
            return _none_visible()
        found = [_facts(calls, nvml, cuda, index) for index in range(count)]
    except CudaError as exc:
        return _none_visible() if exc.code == NO_DEVICE else str(exc)
    except DeviceError as exc:
        return str(exc)
    why = {f"GPU {gpu.index} ({gpu.name})": obstacle(gpu.architecture, cuda) for gpu in found}
    usable = [gpu for gpu, one in zip(found, why.values(), strict=True) if not one]
    return usable or "; ".join(f"{name}: {one}" for name, one in why.items())


def bindings() -> Any:
    """The module cuda.bindings.driver; DeviceError: no driver, or not installed."""
    if missing := _no_driver():
        raise DeviceError(missing)
    try:
        from cuda.bindings import driver
    except ImportError as exc:
        raise DeviceError(
            f"the package cuda-bindings is missing ({reason(exc)}): pip install"
            " 'kimi-offload[cuda]'"
        ) from exc
    return driver


def entry(name: str) -> int:
    """Address of a function of the driver's library, the one that cuda.bindings has loaded."""
    return int(ctypes.cast(getattr(_library(), name), ctypes.c_void_p).value or 0)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def obstacle(architecture: int, cuda: int) -> str:
    """Why a GPU cannot be used, or ""."""
    if architecture < OLDEST:
        return (
            f"it has compute capability {architecture // 10}.{architecture % 10}, kernels need"
            f" {OLDEST // 10}.{OLDEST % 10} (A100, 30 series and newer)"
        )
    if architecture >= 100 and cuda < BLACKWELL_CUDA:
        return _too_old_driver(cuda, BLACKWELL_CUDA)
    return ""


def text_of(name: bytes) -> str:
    """A name that the driver gave."""
    return shown(name.split(b"\0")[0].decode("utf-8", "replace").strip())


def _management() -> Any:
    try:
        from cuda.bindings import nvml
    except ImportError:  # of another version
        return None
    return nvml


def _no_driver() -> str:
    """Why there is no driver's library, or ""."""
    if sys.platform == "darwin":
        return "there is no NVIDIA driver for macOS"
    try:
        _library()
    except OSError as exc:
        return (
            f"no NVIDIA driver ({reason(exc)}): install one, {_DRIVERS[OLDEST_CUDA]} or newer; a"
            " container needs --gpus all"
        )
    return ""


def _too_old_driver(cuda: int, needed: int) -> str:
    return (
        f"the NVIDIA driver speaks CUDA {_version(cuda)}, {_version(needed)} is needed: install"
        f" driver {_DRIVERS[needed]} or newer"
    )


def _none_visible() -> str:
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return f"no GPU is visible: CUDA_VISIBLE_DEVICES is {shown(repr(chosen))}; unset it"
    return "no GPU is visible to the NVIDIA driver: `nvidia-smi` tells more"


def _version(cuda: int) -> str:
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def _facts(calls: CudaCalls, nvml: Any, cuda: int, index: int) -> GpuFacts:
    device = calls.call("cuDeviceGet", index)
    total = int(calls.call("cuDeviceTotalMem", device))
    told = _told(nvml, text_of(calls.call("cuDeviceGetPCIBusId", 32, device)))
    free = told.pop("free")
    return GpuFacts(
        index=index,
        name=text_of(calls.call("cuDeviceGetName", 128, device)),
        architecture=architecture(calls, device),
        cuda=cuda,
        free=min(_free(calls, device) if free is None else free, total),
        total=total,
        **told,
    )


def architecture(calls: CudaCalls, device: Any) -> int:
    """90: sm_90."""
    names = calls.module.CUdevice_attribute
    major = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    minor = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    numbers = (int(calls.call("cuDeviceGetAttribute", one, device)) for one in (major, minor))
    return 10 * next(numbers) + next(numbers)


def _free(calls: CudaCalls, device: Any) -> int:
    """By a context, which takes some."""
    calls.call("cuCtxSetCurrent", calls.call("cuDevicePrimaryCtxRetain", device))
    try:
        return int(calls.call("cuMemGetInfo")[0])
    finally:
        calls.attempt("cuCtxSetCurrent", None)
        calls.attempt("cuDevicePrimaryCtxRelease", device)


def _told(nvml: Any, place: str) -> dict[str, Any]:
    """What the management library knows of the GPU at this place of the bus."""
    asked: dict[str, Callable[[Any], Any]] = {
        "free": lambda gpu: int(nvml.device_get_memory_info_v2(gpu).free),
        "driver": lambda gpu: str(nvml.system_get_driver_version()),
        "pcie_generation": lambda gpu: int(nvml.device_get_max_pcie_link_generation(gpu)),
        "pcie_width": lambda gpu: int(nvml.device_get_max_pcie_link_width(gpu)),
        "power_limit": lambda gpu: nvml.device_get_enforced_power_limit(gpu) / 1000,
    }
    found: dict[str, Any] = dict.fromkeys(asked)
    if nvml is None:
        return found
    try:
        nvml.init_v2()
    except Exception:  # of many classes; it may not be there
        return found
    with suppress(Exception):
        gpu = nvml.device_get_handle_by_pci_bus_id_v2(place)
        for name, ask in asked.items():
            with suppress(Exception):
                found[name] = ask(gpu)
    with suppress(Exception):
        nvml.shutdown()
    return found
