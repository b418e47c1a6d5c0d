"""The driver's functions with their errors told: CudaCalls.

An error is one line: what happened, the driver's name and number for it, the way out. After some
errors nothing works any more until all is given back: the GPU is lost, and every later call says
the same. What a call makes is noted with the function that undoes it.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from offload.errors import DeviceError, reason

log = logging.getLogger(__name__)

NO_MEMORY: Final = 2
NO_DEVICE: Final = 100
NOT_READY: Final = 600
NOT_SUPPORTED: Final = 801

_REPORT: Final = "please report it with the output of `kimi-offload doctor`"
_FRESH: Final = "an answer that is asked for again may start afresh; --device cpu does without"
_REMAKE: Final = "`kimi-offload doctor` names the folder of kernels: without it they are made again"
_WORDS: Final[dict[int, tuple[str, str]]] = {
    1: ("a value was refused", _REPORT),
    2: ("memory is short", "`nvidia-smi` lists who holds VRAM; a smaller --context needs less"),
    3: ("the driver was not started", _REPORT),
    4: ("the driver has shut down", "start again"),
    34: ("libcuda is a stub of the toolkit", "take its folder `stubs` out of LD_LIBRARY_PATH"),
    46: ("another program has it for itself", "end that one, or `nvidia-smi -c 0` shares it"),
    100: ("no GPU is visible",
          "`nvidia-smi`, CUDA_VISIBLE_DEVICES and a container's options tell why"),
    101: ("there is no such GPU", "`kimi-offload doctor` lists them"),
    200: ("a kernel is damaged", _REMAKE),
    209: ("a kernel is not for this GPU", _REMAKE),
    214: ("its memory has an error that it cannot correct", "restart the machine; when it comes"
          " again, the card is at fault"),
    218: ("a kernel is damaged", _REMAKE),
    220: ("its link to another GPU failed", "restart the machine"),
    500: ("a kernel is not in its file", _REMAKE),
    700: ("a kernel touched memory that is not there", f"{_FRESH}; {_REPORT}"),
    701: ("a kernel needs more than a block can have", _REPORT),
    702: ("a kernel took longer than a GPU with a display may", _FRESH),
    709: ("its context is gone", _FRESH),
    712: ("this memory is pinned already", _REPORT),
    715: ("a kernel has an instruction that it does not know", f"{_FRESH}; {_REPORT}"),
    716: ("a kernel touched memory at no multiple of its size", f"{_FRESH}; {_REPORT}"),
    719: ("a kernel failed", f"{_FRESH}; {_REPORT}"),
    801: ("it does not support this", _REPORT),
    802: ("the system is not ready", "start NVIDIA's fabric manager, or wait until it has started"),
    803: ("the driver's library and its kernel module differ, as after an update", "restart the"
          " machine"),
    804: ("this driver is not for this GPU", "install a newer NVIDIA driver"),
    911: ("a part of the system failed", "restart the machine"),
    999: ("the driver cannot say what failed", "restart the machine; after a suspend it often helps"
          " to load the kernel module nvidia_uvm anew"),
}  # fmt: skip
# after these nothing works until the context is gone
_LOST: Final = frozenset({
    4, 201, 214, 220, 226, 227, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 722, 911, 999
})  # fmt: skip


class CudaError(DeviceError):
    """An error of the driver. code: its number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class CudaCalls:
    """Functions of the module cuda.bindings.driver. name: of the GPU, for messages.

    lost: the error after which nothing works; hangs: it does not answer, a call would wait.
    """

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name = module, name
        self.lost: DeviceError | None = None
        self.hangs = self.closed = False
        self.context: Any = None
        self._made: dict[tuple[str, int], Any] = {}

    def enter(self) -> None:
        """What follows is for this GPU, in whatever thread; DeviceError if that is over."""
        if self.closed:
            raise DeviceError(f"{self.name} is closed")
        self.call("cuCtxSetCurrent", self.context)

    def call(self, function: str, *arguments: Any) -> Any:
        """What the driver gives: nothing, a value, a tuple."""
        self.must_live()
        code, found = self._answer(function, arguments)
        if code:
            raise self.failure(function, code)
        return found[0] if len(found) == 1 else found

    def is_done(self, event: Any) -> bool:
        """Whether all before an event is over."""
        self.must_live()
        code, _ = self._answer("cuEventQuery", (event,))
        if code not in (0, NOT_READY):
            raise self.failure("cuEventQuery", code)
        return code == 0

    def make(self, undo: str, function: str, *arguments: Any) -> Any:
        """`call`; what it gives is undone by `drop`, at the latest by `drop_all`."""
        handle = self.call(function, *arguments)
        self.own(undo, handle)
        return handle

    def own(self, undo: str, handle: Any) -> None:
        """Note what is to be undone."""
        self._made[undo, int(handle)] = handle

    def drop(self, undo: str, handle: Any) -> None:
        """Undo one; nothing if that was done."""
        key = undo, int(handle)
        if key in self._made:
            self.call(undo, self._made[key])
            del self._made[key]

    def drop_all(self) -> None:
        """Undo all that is left, the last first; never raises."""
        while self._made:
            (undo, _), handle = self._made.popitem()
            if self.lost is None:
                self.attempt(undo, handle)

    def attempt(self, function: str, *arguments: Any) -> None:
        """A call whose error changes nothing."""
        try:
            code, _ = self._answer(function, arguments)
            if code:
                self.failure(function, code)
        except DeviceError as exc:
            log.debug("%s", exc)

    def must_live(self) -> None:
        """DeviceError if the GPU is lost."""
        if self.lost is not None:
            raise type(self)._again(self.lost)

    def lose(self, what: str) -> DeviceError:
        """It does not answer: no call is made any more, for it would wait."""
        self.hangs = True
        self.lost = DeviceError(f"{self.name}: {what}; {_FRESH}")
        return self.lost

    @staticmethod
    def _again(lost: DeviceError) -> DeviceError:
        if isinstance(lost, CudaError):
            return CudaError(lost.code, str(lost))
        return DeviceError(str(lost))

    def _answer(self, function: str, arguments: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        try:
            code, *found = getattr(self.module, function)(*arguments)
        except (RuntimeError, ValueError) as exc:  # a library, function, number that is not known
            raise DeviceError(
                f"{self.name}: the NVIDIA driver and this version of cuda-bindings do not go"
                f" together ({function}: {reason(exc)}); install a newer driver and"
                " `pip install --upgrade 'kimi-offload[cuda]'`; --device cpu does without"
            ) from exc
        return int(code), tuple(found)

    def failure(self, function: str, code: int) -> CudaError:
        """An error that a function gave."""
        what, way_out = _WORDS.get(code, ("a call failed", _FRESH))
        text = f"{self.name}: {what} ({error_name(self.module, code)}, {code}, in {function})"
        error = CudaError(code, f"{text}; {way_out}")
        if code in _LOST and self.lost is None:
            self.lost = error
        return error


def error_name(module: Any, code: int) -> str:
    """The driver's name of an error."""
    try:
        return str(module.CUresult(code).name)
    except (ValueError, AttributeError):  # of a newer driver
        return "unknown error"
