"""kimi-mini in torch: the K2.5 shape, small, with ternary routed experts.

T tokens, H hidden, A heads, E routed experts, K experts per token, F expert width.
The forward pass is the one of the GGUF `deepseek2` family: MLA with a latent of
`kv_lora` values and one shared rotary key, a leading dense layer, then MoE layers with
sigmoid gating whose selection bias never enters the weights.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the usual name)
from torch import Tensor, nn

ROWS = 64  # an expert's rows come in multiples, so that few shapes of product are compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniConfig:
    """The shape of the model; all counts, no units."""

    vocab: int = 5120
    hidden: int = 256
    layers: int = 4  # one dense, the rest MoE
    heads: int = 4
    q_lora: int = 128
    kv_lora: int = 128
    nope: int = 64
    rope: int = 32
    v_dim: int = 64
    dense_width: int = 1024
    experts: int = 64
    top_k: int = 8
    expert_width: int = 256
    routed_scale: float = 2.827
    theta: float = 50_000.0
    eps: float = 1e-5
    context: int = 2048

    def to_dict(self) -> dict[str, float]:
        """Plain values, for the checkpoint."""
        return asdict(self)


TINY = MiniConfig(
    vocab=5120, hidden=256, layers=2, heads=2, q_lora=32, kv_lora=32, nope=32, rope=32,
    v_dim=32, dense_width=256, experts=8, top_k=2, expert_width=256,
)  # fmt: skip


def ternary_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest ternary rows: signs in {-1, 0, 1} like `w`, and one scale per row (..., 1).

    Entries below 0.7 of the row's mean magnitude become 0, the scale is the mean magnitude
    of the rest (Li and Liu, Ternary Weight Networks, 2016). It is rounded to bfloat16, hence
    exact in float16 as well, so that TQ1_0 stores the row without loss.
    """
    limit = 0.7 * w.abs().mean(-1, keepdim=True)
    signs = (w > limit).to(w.dtype) - (w < -limit).to(w.dtype)
    scale = (w * signs).sum(-1, keepdim=True) / signs.abs().sum(-1, keepdim=True).clamp_min(1)
    return signs, scale.clamp(1e-4, 1e4).bfloat16().float()


class _ExpertFFN(torch.autograd.Function):
    """Rows sorted by expert through their own SwiGLU: one small dense product per expert."""

    @staticmethod
    def forward(ctx, x, gate_up, down, ends):  # type: ignore[no-untyped-def]
        """x (R, H), rows by expert; gate_up (E, 2F, H); down (E, H, F); ends: of each expert."""
        gu = x.new_empty(x.shape[0], gate_up.shape[1])
        act, y = torch.empty_like(x), torch.empty_like(x)
        start = 0
        for e, end in enumerate(ends):  # one expert's rows stay in the cache of a core
            if end > start:
                torch.mm(x[start:end], gate_up[e].t(), out=gu[start:end])
                gate, up = gu[start:end].chunk(2, -1)
                torch.mul(F.silu(gate), up, out=act[start:end])
                torch.mm(act[start:end], down[e].t(), out=y[start:end])
            start = end
        ctx.save_for_backward(x, gu, act, gate_up, down)
        ctx.ends = ends
        return y

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        """Gradients of x, gate_up and down; of the weights only if they are trained."""
        x, gu, act, gate_up, down = ctx.saved_tensors
        dy = dy.contiguous()
        trained = ctx.needs_input_grad[1]
        d_down = torch.zeros_like(down) if trained else None
        d_gate_up = torch.zeros_like(gate_up) if trained else None
        dx = torch.empty_like(x)
        start = 0
        for e, end in enumerate(ctx.ends):
            if end > start:
                rows = slice(start, end)
                da = dy[rows] @ down[e]
                gate, up = gu[rows].chunk(2, -1)
                sig = torch.sigmoid(gate)
                silu = gate * sig
                dgu = torch.empty_like(gu[rows])
                torch.mul(da, silu, out=dgu[:, up.shape[1] :])
                torch.mul(da.mul_(up), sig + silu * (1 - sig), out=dgu[:, : up.shape[1]])
                torch.mm(dgu, gate_up[e], out=dx[rows])
                if trained:
                    torch.mm(dy[rows].t(), act[rows], out=d_down[e])
                    torch.mm(dgu.t(), x[rows], out=d_gate_up[e])
            start = end
        return dx, d_gate_up, d_down, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis in float32; returns the type of `x`."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on adjacent pairs; x (..., S, rope), cos and sin (S, rope / 2)."""
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head latent attention, expanded form (training and short prompts)."""

    def __init__(self, c: MiniConfig) -> None:
        """Allocate the projections; names follow the GGUF tensors."""
        super().__init__()
        self.c = c
        self.norm = nn.Parameter(torch.ones(c.hidden))
        self.q_a = _matrix(c.q_lora, c.hidden)
        self.q_a_norm = nn.Parameter(torch.ones(c.q_lora))
        self.q_b = _matrix(c.heads * (c.nope + c.rope), c.q_lora)
        self.kv_a = _matrix(c.kv_lora + c.rope, c.hidden)
        self.kv_a_norm = nn.Parameter(torch.ones(c.kv_lora))
        self.k_b = _matrix(c.heads * c.nope, c.kv_lora)
        self.v_b = _matrix(c.heads * c.v_dim, c.kv_lora)
        self.out = _matrix(c.hidden, c.heads * c.v_dim, gain=0.5)
        self.watched: list[int] = []  # heads whose scores are kept
        self.scores: dict[int, Tensor] = {}  # (B, S, S) float32, not masked

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Map x (B, S, H) -> (B, S, H); mask (B, 1, S, S) bool, None means causal."""
        c, (b, s, _) = self.c, x.shape
        h = rms_norm(x, self.norm, c.eps)
        q = linear(rms_norm(linear(h, self.q_a), self.q_a_norm, c.eps), self.q_b)
        q_nope, q_rope = q.view(b, s, c.heads, -1).transpose(1, 2).split((c.nope, c.rope), -1)
        latent, k_rope = linear(h, self.kv_a).split((c.kv_lora, c.rope), -1)
        latent = rms_norm(latent, self.kv_a_norm, c.eps)
        k_rope = rotate(k_rope, cos, sin)[:, None].expand(-1, c.heads, -1, -1)
        k_nope = linear(latent, self.k_b).view(b, s, c.heads, c.nope).transpose(1, 2)
        v = linear(latent, self.v_b).view(b, s, c.heads, c.v_dim).transpose(1, 2)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1)
        k = torch.cat((k_nope, k_rope), -1)
        scale = (c.nope + c.rope) ** -0.5
        for i in self.watched:
            self.scores[i] = q[:, i].float() @ k[:, i].float().transpose(-1, -2) * scale
        pad = c.nope + c.rope - c.v_dim  # equal widths select the fused attention kernel
        o = F.scaled_dot_product_attention(
            q, k, F.pad(v, (0, pad)), attn_mask=mask, is_causal=mask is None
        )
        return linear(o[..., : c.v_dim].transpose(1, 2).reshape(b, s, -1), self.out)


class Dense(nn.Module):
    """SwiGLU of one width; also the shared expert."""

    def __init__(self, hidden: int, width: int) -> None:
        """Allocate gate, up and down."""
        super().__init__()
        self.gate = _matrix(width, hidden)
        self.up = _matrix(width, hidden)
        self.down = _matrix(hidden, width, gain=0.5)

    def forward(self, h: Tensor) -> Tensor:
        """Map h (..., H) -> (..., H)."""
        return linear(F.silu(linear(h, self.gate)) * linear(h, self.up), self.down)


class MoE(nn.Module):
    """Sigmoid router with selection bias, ternary routed experts, one shared expert.

    `gate_up` and `down` are the float32 weights that the optimiser moves. `refresh` makes
    ternary copies of them, the forward pass uses the copies, and `collect` hands the copies'
    gradients to the originals (straight-through), once per optimiser step.
    """

    def __init__(self, c: MiniConfig) -> None:
        """Allocate router, experts and shared expert."""
        super().__init__()
        self.c = c
        self.router = _matrix(c.experts, c.hidden)
        self.gate_up = nn.Parameter(torch.randn(c.experts, 2 * c.expert_width, c.hidden))
        self.down = nn.Parameter(torch.randn(c.experts, c.hidden, c.expert_width))
        self.gate_up.data *= c.hidden**-0.5
        self.down.data *= 0.5 * c.expert_width**-0.5
        self.shared = Dense(c.hidden, c.expert_width)
        self.register_buffer("bias", torch.zeros(c.experts))
        self.register_buffer("load", torch.zeros(c.experts), persistent=False)
        self.quantised: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def refresh(self, dtype: torch.dtype) -> None:
        """Quantise all experts of this layer to ternary copies of `dtype`."""
        if self.quantised is not None and not self.gate_up.requires_grad:
            return
        copies = []
        for w in (self.gate_up, self.down):
            signs, scale = ternary_rows(w)
            copies.append((signs * scale).to(dtype).requires_grad_(w.requires_grad))
        self.quantised = (copies[0], copies[1])

    def collect(self) -> None:
        """Move the copies' gradients to the trained weights."""
        assert self.quantised is not None
        for w, copy in zip((self.gate_up, self.down), self.quantised, strict=True):
            w.grad = None if copy.grad is None else copy.grad.float()
            copy.grad = None

    def forward(self, h: Tensor) -> Tensor:
        """Map h (T, H) in the compute type -> (T, H)."""
        c, t = self.c, h.shape[0]
        score = torch.sigmoid(F.linear(h.float(), self.router))
        chosen = (score.detach() + self.bias).topk(c.top_k, dim=-1).indices  # (T, K)
        weight = score.gather(1, chosen)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(6.1035e-5) * c.routed_scale
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=c.experts)
        self.load += counts
        assert self.quantised is not None
        padded = (counts + ROWS - 1) // ROWS * ROWS
        ends = padded.cumsum(0)
        first = torch.repeat_interleave(ends - padded - counts.cumsum(0) + counts, counts)
        place = torch.empty_like(order)
        place[order] = first + torch.arange(order.numel())  # the row of each (token, choice)
        n_rows = int(ends[-1])
        rows = _Spread.apply(h, place, n_rows)
        y = _ExpertFFN.apply(rows, *self.quantised, ends.tolist())
        y = _Pick.apply(y, place).view(t, c.top_k, -1)
        routed = torch.bmm(weight.to(y.dtype).unsqueeze(1), y).squeeze(1)
        return routed + self.shared(h)


class _Spread(torch.autograd.Function):
    """Copy each token's row once per chosen expert; rows that no token takes are zero."""

    @staticmethod
    def forward(ctx, h, place, n_rows):  # type: ignore[no-untyped-def]
        """Map h (T, H), place (T * K) -> (n_rows, H)."""
        ctx.place, ctx.tokens = place, h.shape[0]
        copies = h.repeat_interleave(place.numel() // h.shape[0], 0)
        return h.new_zeros(n_rows, h.shape[1]).index_copy_(0, place, copies)

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        """Sum the K rows of each token."""
        return d.index_select(0, ctx.place).view(ctx.tokens, -1, d.shape[-1]).sum(1), None, None


class _Pick(torch.autograd.Function):
    """index_select of different rows; its backward writes them back."""

    @staticmethod
    def forward(ctx, y, place):  # type: ignore[no-untyped-def]
        """Map y (R, H) -> y[place]."""
        ctx.place, ctx.n_rows = place, y.shape[0]
        return y.index_select(0, place)

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        """Zero where no row was taken."""
        return d.new_zeros(ctx.n_rows, d.shape[1]).index_copy_(0, ctx.place, d), None


class Block(nn.Module):
    """One layer: attention, then dense or MoE, each on a normed copy of the residual."""

    def __init__(self, c: MiniConfig, *, dense: bool) -> None:
        """Build the layer."""
        super().__init__()
        self.eps = c.eps
        self.attn = Attention(c)
        self.ffn_norm = nn.Parameter(torch.ones(c.hidden))
        self.ffn: Dense | MoE = Dense(c.hidden, c.dense_width) if dense else MoE(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Map x (B, S, H) -> (B, S, H)."""
        x = x + self.attn(x, cos, sin, mask)
        h = rms_norm(x, self.ffn_norm, self.eps)
        return x + self.ffn(h.flatten(0, 1)).view_as(x)


class Mini(nn.Module):
    """The whole model. `dtype` is the type of matrix products (bfloat16 to train)."""

    def __init__(self, c: MiniConfig, dtype: torch.dtype = torch.float32) -> None:
        """Allocate and initialise; call `refresh` before the first forward pass."""
        super().__init__()
        self.c = c
        self.dtype = dtype
        self.embed = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.5)
        self.blocks = nn.ModuleList(Block(c, dense=i == 0) for i in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))
        self.head = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.02)

    def moe_layers(self) -> list[MoE]:
        """The MoE blocks in layer order."""
        return [b.ffn for b in self.blocks if isinstance(b.ffn, MoE)]

    def refresh(self) -> None:
        """Renew the ternary copies of every expert."""
        for moe in self.moe_layers():
            moe.refresh(self.dtype)

    def forward(self, ids: Tensor, docs: Tensor | None = None) -> Tensor:
        """Hidden states (B, S, H) after the last norm.

        ids (B, S) int64; docs (B, S) numbers the documents packed in a row, a token attends
        only to its own document. None: one document per row.
        """
        c, s = self.c, ids.shape[1]
        inverse = c.theta ** (-torch.arange(0, c.rope, 2, dtype=torch.float64) / c.rope)
        angle = torch.arange(s, dtype=torch.float64)[:, None] * inverse
        cos, sin = angle.cos().float(), angle.sin().float()
        mask = None
        if docs is not None:
            causal = torch.ones(s, s, dtype=torch.bool).tril()
            mask = ((docs[:, :, None] == docs[:, None, :]) & causal)[:, None]
        x = F.embedding(ids, self.embed).to(self.dtype)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return rms_norm(x, self.norm, c.eps)

    def logits(self, ids: Tensor) -> Tensor:
        """Float32 logits (B, S, V)."""
        return F.linear(self(ids), self.head.to(self.dtype)).float()


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Return x @ w.T with the weight cast to the type of `x`."""
    return F.linear(x, w.to(x.dtype))


def _matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * gain * columns**-0.5)
