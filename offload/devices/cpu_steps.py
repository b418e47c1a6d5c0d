"""The steps of a tape: what a device's layers become when one token is decoded.

Scratch is shared by all layers; contexts and jobs are each step's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from offload.devices.base import Layer, Stack
from offload.devices.cpu_jobs import fill_job, whole_groups
from offload.kv_cache import row_layout
from offload.weights import Matrix
from quant.kernels import Job
from quant.run import attention, driver, layer_ops
from quant.run.activations import record_bytes
from quant.run.attention import Attend
from quant.run.tape import (
    JOB_BYTES,
    Tape,
    embed_task,
    latent_task,
    norm_task,
    query_task,
    records_task,
    route_task,
    value_task,
)

if TYPE_CHECKING:
    from offload.devices.cpu_mlp import Branch, CpuFeedForward
    from offload.devices.cpu_ops import CpuLinear, CpuOps, CpuPerHead

Array = np.ndarray
TURNS = 4  # of a thread per region, where that leaves turns of LEAST_TURN bytes
LEAST_TURN = 1 << 14
MOST_TURN = 1 << 16


@dataclass(frozen=True, slots=True)
class Inputs:
    """Addresses of an activation vector in its forms; records that nothing reads are 0."""

    plain: int  # float32, zero columns up to n_cols
    q8: int
    q16: int
    n_cols: int

    def form(self, matrix: Matrix, planes: int) -> int:
        """What a matrix reads."""
        if matrix.quant.is_float:
            return self.plain
        return self.q8 if planes == 1 else self.q16


@dataclass(frozen=True, slots=True, eq=False)
class Jobs:
    """A feed-forward block's jobs of both regions; row k of y has the weight weights[k]."""

    first: Array
    second: Array
    n_shared: int
    y: int
    weights: Array  # (slots,) float32, the shared expert's last


class TapeBuilder:
    """Writes the steps of a Stack."""

    def __init__(self, ops: CpuOps, stack: Stack, state: int, expert_ids: Array) -> None:
        self.tape = Tape()
        self.n_bytes = 0  # of weights that the steps so far read
        self._ops = ops
        self._stack = stack
        self._state = state
        self._expert_ids = expert_ids
        hidden = stack.config.hidden_size
        self._x = self.tape.room(4 * max(hidden, stack.embedding.n_cols))
        self._rooms: dict[str, tuple[int, int]] = {}

    # --- memory and products ------------------------------------------------------------------

    def _room(self, name: str, n_bytes: int) -> int:
        """Zeroed scratch, the same for all layers that ask for as much under this name."""
        size, address = self._rooms.get(name, (-1, 0))
        if size != n_bytes:
            address = self.tape.room(n_bytes)
            self._rooms[name] = n_bytes, address
        return address

    def _inputs(self, name: str, *readers: tuple[int, Matrix]) -> Inputs:
        """Room for a vector as its readers (planes, matrix) want it."""
        n_cols = max(m.n_cols for _, m in readers)
        planes = {p for p, m in readers if not m.quant.is_float}
        q8, q16 = (
            self._room(f"{name} Q{8 * p}", record_bytes(n_cols, p)) if p in planes else 0
            for p in (1, 2)
        )
        return Inputs(self._room(f"{name} {n_cols}", 4 * n_cols), q8, q16, n_cols)

    def _norm(self, x: int, weight: Array, out: Inputs, add: int = 0) -> None:
        eps = float(self._stack.config.rms_norm_eps)
        fields = x, weight.size, self.tape.keep(np.ascontiguousarray(weight)), eps
        context = self.tape.context(*fields, out.plain, add, out.n_cols, out.q8, out.q16)
        self.tape.add(norm_task.address, context)

    def _chunk(self, jobs: Array, rows: int, *matrices: Matrix) -> int:
        """Rows of a turn, a multiple of `rows` at borders of these matrices' row groups."""
        row_bytes = jobs[:, Job.ROW_BYTES] + jobs[:, Job.ROW_BYTES2]
        total = int((row_bytes * jobs[:, Job.N_ROWS]).sum())
        turn = min(max(total // (TURNS * self._ops.pool.threads), LEAST_TURN), MOST_TURN)
        unit = whole_groups(rows, *matrices)
        return max(1, turn // int(row_bytes.max()) // unit) * unit

    def _rows(self, jobs: Array, chunk: int) -> None:
        context = self.tape.context(self.tape.keep(jobs), chunk)
        self.tape.add(driver.rows_task.address, context, driver.count_tasks(jobs, chunk))

    def _linear(self, linear: CpuLinear, x: Inputs, *outs: int) -> Array:
        """A step for matrices that share their input; returns their jobs."""
        jobs = linear.jobs("matvec_q16")
        for job, matrix, out in zip(jobs, linear.matrices, outs, strict=True):
            job[Job.X] = x.form(matrix, 2)
            job[Job.N_TOKENS] = 1
            job[Job.OUT] = out
            self.n_bytes += matrix.n_bytes
        self._rows(jobs, self._chunk(jobs, 16, *linear.matrices))
        return jobs

    def _head_jobs(self, head: CpuPerHead, x: int, stride: int, out: int, out_stride: int) -> int:
        """Address of one job per head."""
        jobs = head.jobs()
        heads = np.arange(len(jobs))
        jobs[:, Job.X] = x + stride * heads
        jobs[:, Job.OUT] = out + out_stride * heads
        jobs[:, Job.N_TOKENS] = 1
        self.n_bytes += head.matrix.count * head.matrix.n_bytes
        return self.tape.keep(jobs)

    # --- steps of a token ---------------------------------------------------------------------

    def embed(self) -> None:
        """The token's embedding to x."""
        table = self._stack.embedding
        jobs = driver.job_table(1)
        fill_job(jobs[0], table, "dequantize")
        jobs[0, Job.OUT] = self._x
        self.n_bytes += table.row_bytes
        self.tape.add(embed_task.address, self.tape.context(self._state, self.tape.keep(jobs)))

    def layer(self, index: int, layer: Layer) -> None:
        """X += attention(norm(x)); x += ffn(norm(x))."""
        h = self.ffn_input(layer, self.attention(index, layer))
        ffn = cast("CpuFeedForward", layer.ffn)
        jobs = self.jobs(ffn, h)
        self.route(index, layer, ffn, jobs, h)
        self.feed_forward(ffn, jobs)

    def ffn_input(self, layer: Layer, attended: int) -> Inputs:
        """X += attention's output; norm(x) as the router and the experts want it."""
        ffn = cast("CpuFeedForward", layer.ffn)
        readers = [(b.planes, m) for b in ffn.branches for m in (b.mlp.gate, b.mlp.up)]
        if layer.router is not None:
            readers += [(2, m) for m in cast("CpuLinear", layer.router).matrices]
        h = self._inputs("ffn", *readers)
        self._norm(self._x, layer.ffn_norm, h, attended)
        return h

    def head(self) -> Array:
        """Logits; returns the job whose OUT they go to."""
        head = cast("CpuLinear", self._stack.head)
        h = self._inputs("head", *((2, m) for m in head.matrices))
        self._norm(self._x, self._stack.output_norm, h)
        job: Array = self._linear(head, h, 0)[0]
        return job

    def attention(self, index: int, layer: Layer) -> int:
        """Address of the attention's output (H,)."""
        config = self._stack.config
        first, output = cast("CpuLinear", layer.first), cast("CpuLinear", layer.output)
        h = self._inputs("attention", *((2, m) for m in first.matrices))
        self._norm(self._x, layer.attn_norm, h)
        q_a, latent = (self._room(f"first {i}", 4 * m.n_rows) for i, m in enumerate(first.matrices))
        self._linear(first, h, q_a, latent)
        q = q_a
        if layer.q_b is not None and layer.q_a_norm is not None:
            q_b = cast("CpuLinear", layer.q_b)
            low = self._inputs("q_b", *((2, m) for m in q_b.matrices))
            self._norm(q_a, layer.q_a_norm, low)
            q = self._room("q", 4 * q_b.matrices[0].n_rows)
            self._linear(q_b, low, q)
        n_latent, n_rope = row_layout(config)
        heads = -(-config.num_heads // attention.HEADS) * attention.HEADS
        width = n_latent + n_rope
        wide = self._room("wide", 4 * heads * width)
        z = self._room("z", 4 * heads * n_latent)
        attend, count = self._attend_context(wide, z, heads, width, n_latent)
        threads = self._ops.pool.threads
        rope = config.qk_rope_head_dim
        weight = self.tape.keep(np.ascontiguousarray(layer.kv_a_norm))
        row = self._room("row", 4 * width)
        fields = self._state, latent, config.kv_lora_rank, rope, weight, float(config.rms_norm_eps)
        context = self.tape.context(*fields, row, n_latent, width, index, attend, threads, count)
        self.tape.add(latent_task.address, context)

        k_b, v_b = cast("CpuPerHead", layer.k_b), cast("CpuPerHead", layer.v_b)
        size = 4 * k_b.matrix.n_cols
        nope = self._room("nope", config.num_heads * size)
        jobs = self._head_jobs(k_b, nope, size, wide, 4 * width)
        query = self._state, q, config.qk_nope_head_dim, rope, jobs, wide, width, n_latent
        context = self.tape.context(*query, float(self._stack.scale))
        self.tape.add(query_task.address, context, config.num_heads)
        self.tape.add(attention.attend_task.address, attend, count_at=count)
        return self._values(v_b, output, z, 4 * n_latent, attend)

    def _attend_context(
        self, q: int, z: int, heads: int, width: int, latent: int
    ) -> tuple[int, int]:
        """(context of the attention of one token, address of its number of tasks)."""
        size = attention.scratch_bytes(width)
        fields = {
            Attend.Q: q,
            Attend.Z: z,
            Attend.N_HEADS: heads,
            Attend.WIDTH: width,
            Attend.LATENT: latent,
            Attend.N_TOKENS: 1,
            Attend.TASK_TOKENS: 1,
            Attend.PARTIALS: self._room("partials", attention.partial_bytes(heads, latent)),
            Attend.SCRATCH: self._room("attend", size * self._ops.pool.threads),
            Attend.SCRATCH_BYTES: size,
        }
        context = self.tape.context(*(fields.get(f, 0) for f in Attend))
        return context, self.tape.room(8)

    def _values(self, v_b: CpuPerHead, output: CpuLinear, z: int, z_bytes: int, attend: int) -> int:
        n_heads, v = v_b.matrix.count, v_b.matrix.n_rows
        o = self._inputs("output", *((2, m) for m in output.matrices))
        size = 4 * v_b.matrix.n_cols
        copies = size != z_bytes
        x = self._room("values", n_heads * size) if copies else z
        jobs = self._head_jobs(v_b, x, size, o.plain, 4 * v)
        fused = o.q16 if v % 32 == 0 else 0
        rank = self._stack.config.kv_lora_rank
        fields = z, z_bytes, rank, jobs, int(copies), fused, o.n_cols
        context = self.tape.context(*fields, attention.merge_task.address, attend)
        self.tape.add(value_task.address, context, n_heads)
        if o.q16 and not fused:
            self.tape.add(records_task.address, self.tape.context(o.plain, o.n_cols, 0, o.q16))
        out = self._room("attended", 4 * output.matrices[0].n_rows)
        self._linear(output, o, out)
        return out

    def jobs(self, ffn: CpuFeedForward, h: Inputs) -> Jobs:
        """The jobs of a feed-forward block: one shared, then one per chosen expert."""
        n_routed = self._stack.config.num_experts_per_tok if ffn.routed is not None else 0
        n_shared = int(ffn.shared is not None)
        slots = n_routed + n_shared
        row = 4 * self._stack.config.hidden_size
        y = self._room("y", row * slots)
        made = Jobs(
            driver.job_table(slots), driver.job_table(slots), n_shared, y, np.ones(slots, "f4")
        )
        if ffn.shared is not None:  # first in line, for its chunks are the longest
            self._branch(ffn.shared, h, made.first[:1], made.second[:1], y + row * n_routed)
        if ffn.routed is not None:
            self._branch(ffn.routed, h, made.first[n_shared:], made.second[n_shared:], y)
        for array in (made.first, made.second, made.weights):
            self.tape.keep(array)
        return made

    def feed_forward(self, ffn: CpuFeedForward, jobs: Jobs) -> None:
        """X += the block's result."""
        tape, first = self.tape, jobs.first
        slots, row = len(first), 4 * self._stack.config.hidden_size
        mlps = [b.mlp for b in ffn.branches]
        chunk = self._chunk(first, 32, *(m.gate for m in mlps), *(m.up for m in mlps))
        size = driver.gate_up_scratch(chunk, 1)
        scratch = self._room("scratch", size * self._ops.pool.threads)
        context = tape.context(first.ctypes.data, chunk, scratch, size)
        tape.add(driver.gate_up_task.address, context, driver.count_tasks(first, chunk))
        self._rows(jobs.second, self._chunk(jobs.second, 16, *(m.down for m in mlps)))
        order, weights = tape.keep(np.arange(slots)), jobs.weights.ctypes.data
        context = tape.context(jobs.y, row, order, weights, slots, row // 4, self._x, row)
        tape.add(layer_ops.combine_task.address, context)

    def _branch(self, branch: Branch, h: Inputs, first: Array, second: Array, y: int) -> None:
        """Fill the jobs of a branch, one per slot; its results go to y, one row per slot."""
        first[:], second[:] = branch.templates(one=True)
        slots = np.arange(len(first))
        room = self._room(f"h {branch.planes}", len(first) * branch.h_bytes)
        first[:, Job.X] = h.form(branch.mlp.gate, branch.planes)
        first[:, Job.X2] = h.form(branch.mlp.up, branch.planes)
        first[:, Job.OUT] = second[:, Job.X] = room + branch.h_bytes * slots
        second[:, Job.OUT] = y + 4 * self._stack.config.hidden_size * slots
        first[:, Job.N_TOKENS] = second[:, Job.N_TOKENS] = 1
        self.n_bytes += len(first) * branch.bytes_per_expert

    def route(self, index: int, layer: Layer, ffn: CpuFeedForward, jobs: Jobs, h: Inputs) -> None:
        """Choose experts and aim the jobs at them; nothing in dense layers."""
        if layer.router is None or ffn.routed is None:
            return
        config, mlp, router = self._stack.config, ffn.routed.mlp, cast("CpuLinear", layer.router)
        n_experts = router.matrices[0].n_rows
        logits = self._room("logits", 4 * n_experts)
        self._linear(router, h, logits)
        bias = self.tape.keep(np.ascontiguousarray(layer.bias))
        fields = self._state, logits, n_experts, bias, layer.bias.size
        rules = (
            int(config.scoring_func == "sigmoid"), config.n_group, config.topk_group,
            int(config.norm_topk_prob), float(config.routed_scaling_factor),
        )  # fmt: skip
        choice = self._expert_ids[index].ctypes.data, jobs.weights.ctypes.data
        at = jobs.n_shared * JOB_BYTES
        tables = jobs.first.ctypes.data + at, jobs.second.ctypes.data + at
        experts = [n for m in (mlp.gate, mlp.up, mlp.down) for n in (m.address, m.stride)]
        top_k = config.num_experts_per_tok
        context = self.tape.context(*fields, *rules, *choice, top_k, *tables, *experts, index)
        self.tape.add(route_task.address, context)
