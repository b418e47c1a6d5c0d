"""Routed experts of which the GPU computes those that have a slot there, the CPU all others.

    GPU   .. router | post h and the routing | sort, slots first | experts in slots | shared expert
    CPU                                 wait | schedule the others | gate, up | down
    GPU   (next part) x += all of them in the router's order, the shared one last

An expert has the same bits on both sides, and the order of the sum is the router's, so it does not
matter who has a slot. Many rows: on the CPU, or streamed through the GPU (hybrid_segment.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from offload.devices.base import GatedMLP, Kind
from offload.devices.cpu_blocks import Experts as CpuExperts
from offload.devices.cpu_few_experts import FewExperts, Outputs
from offload.devices.cpu_workspace import Room as CpuRoom
from offload.devices.cuda_blocks import Mlp3
from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_experts import Routed, write_shared, write_sum
from offload.devices.cuda_rooms import NOWHERE, Room
from offload.devices.cuda_writer import FEW

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_writer import Writer as CudaWriter
    from offload.devices.hybrid import HybridDevice
    from offload.devices.hybrid_writer import HybridWriter
    from offload.vram_slots import SlotLayer


NOBODY = Outputs(CpuRoom(0, 0), 0, 0)


class Share(NamedTuple):
    """The GPU's outputs: of experts in slots, the choices' slots, how many of these there are."""

    parts: Room
    slots: int
    here: int  # address of that number
    shared: Room


class SplitExperts:
    """See above. slots: of the layer in VRAM; copy: what brings its experts there.

    Experts that are packed for the CPU have neither, nor have floats: their bits differ.
    """

    kind: Kind = "experts"

    def __init__(
        self, device: HybridDevice, layer: int, routed: GatedMLP, shared: GatedMLP | None
    ) -> None:
        self.device = device
        self.layer = layer
        self.mlp = routed
        self.on_cpu = CpuExperts(device.cpu, layer, routed, None)
        self.slots: SlotLayer | None = None
        self.copy: ExpertCopy | None = None
        matrices = routed.gate, routed.up, routed.down
        if all(m.group_rows == 1 and not m.quant.is_float for m in matrices):
            self.slots = None if device.hot is None else device.hot.add(layer, routed)
            slots = self.slots
            self.copy = ExpertCopy(device.gpu.gpu, routed) if slots is None else slots.copy
        self.on_gpu = GpuShare(device.gpu, layer, self.slots, shared)

    def steps(self, w: HybridWriter) -> None:
        """Write both sides' steps."""
        cpu, gpu = self.device.cpu, self.on_gpu
        flag = w.post(w.routed(self.layer))
        share = gpu.write(w.gpu)
        w.start()
        w.wait(flag, self)
        h = cpu.inputs(self.layer)
        w.cpu.make_records(h)
        w.cpu.inputs_of = self.layer
        elsewhere = None if self.slots is None else self.slots.resident
        others = FewExperts(w.cpu, self.on_cpu.ffn, h, self.layer, elsewhere).write_outputs()
        gpu.combine(w.gpu, share, others)


class GpuShare:
    """What the GPU computes of a layer's experts; a CudaBlock, whose steps are all its launches."""

    kind: Kind = "experts"
    row_bytes = 0

    def __init__(
        self, device: CudaDevice, layer: int, slots: SlotLayer | None, shared: GatedMLP | None
    ) -> None:
        self.device = device
        self.layer = layer
        self._shared = None if shared is None else Mlp3(device, shared)
        self.n_bytes = 0 if self._shared is None else self._shared.n_bytes
        self._routed: Routed | None = None
        readers = device.readers(layer)
        if slots is not None:
            gate, up, down = slots.copy.planes
            self._routed = Routed(device, layer, (gate, up, down), slots.tables, are_all=False)
            readers += [(1, gate), (1, up)]
        if self._shared is not None:
            readers += [(2, self._shared.gate), (2, self._shared.up)]

    def write(self, w: CudaWriter) -> Share:
        """The experts in slots, and the shared one."""
        h, rooms = self.device.inputs(w, self.layer), w.rooms
        if self._routed is not None:
            parts, slots, here = self._routed.write(w, h)
            return Share(parts, slots, here, self._write_shared(w))
        choices = rooms.rows * self.device.config.num_experts_per_tok
        slots, here = rooms.area("no slots", 4 * choices), rooms.area("nothing here", 4)
        return Share(NOWHERE, slots, here, self._write_shared(w))

    def write_sum(self, w: CudaWriter, parts: Room, slots: int) -> None:
        """X += outputs of all choices, which are here, and the shared expert."""
        write_sum(w, parts, slots, self._write_shared(w))

    def combine(self, w: CudaWriter, share: Share, others: Outputs) -> None:
        """X += all of it; others: of the CPU, in memory that both see."""
        elsewhere = share.here, *others.parts, others.slots, others.slots_stride
        write_sum(w, share.parts, share.slots, share.shared, elsewhere)

    def add_shared(self, w: CudaWriter) -> None:
        """X += the shared expert, behind the routed ones."""
        if self._shared is not None:
            self._shared.write(w, self.device.inputs(w, self.layer), w.x, add=True)

    def steps(self, w: CudaWriter) -> None:
        """See CudaBlock. Of many rows (hybrid_many.py), experts in slots have other launches."""
        if w.rows > FEW:
            self.add_shared(w)
            self.write_sum(w, NOWHERE, 0)
        else:
            self.combine(w, self.write(w), NOBODY)

    def _write_shared(self, w: CudaWriter) -> Room:
        return write_shared(w, self._shared, self.device.inputs(w, self.layer))
