"""The nearest of a bank of normal patches: searched in whole numbers, measured exactly.

This is where a line that runs PatchCore spends its time, so it is written twice: as a short operator for PyTorch, and
as the ONNX nodes that the exporter puts in its place, which take the patches in blocks. Both give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GROUP, GROUPS = 64, 32  # entries of a bank of which one is a candidate: so many, but at least so many groups
CANDIDATES = 4  # measured exactly
BLOCK = 64  # patches compared at once: what is said of them stays in the processor's cache
REACH = 0.9999  # quantile of the bank's values up to which the codes are linear


@torch.library.custom_op("blemish::candidates", mutates_args=())
def candidates(codes: Tensor, bank: Tensor, group: int, count: int) -> Tensor:
    """`codes` uint8 `(N, P, K)`, `bank` int8 `(K, M)`, M a multiple of `group` -> columns of the bank int64
    `(N, P, count)`: of each of the `count` groups with the largest products, the column with its largest."""
    products = whole_product(codes, bank).view(*codes.shape[:2], -1, group)
    best = products.amax(3).sort(descending=True, stable=True).indices[..., :count]  # of equals the first, as in ONNX
    rows = products.gather(2, best[..., None].expand(-1, -1, -1, group))
    found: Tensor = best * group + rows.argmax(3)
    return found


@candidates.register_fake
def _(codes: Tensor, bank: Tensor, group: int, count: int) -> Tensor:  # noqa: ARG001
    return codes.new_empty(*codes.shape[:2], count, dtype=torch.long)


def whole_product(codes: Tensor, bank: Tensor) -> Tensor:
    """uint8 `(N, P, K)` times int8 `(K, M)` -> `(N, P, M)`, in floats that hold these sums exactly (below 2^24)."""
    kind = torch.float32 if 255 * 64 * len(bank) < 2**24 else torch.float64
    return codes.to(kind) @ bank.to(kind)


def candidates_in_onnx(codes: Any, bank: Any, group: int, count: int) -> Any:
    """`candidates` in ONNX, for the exporter. MatMulInteger of 8 bits takes a fraction of the time of floats."""
    from onnxscript import opset18 as op

    blocks = -(-codes.shape[1] // BLOCK)
    parts = op.Split(codes, axis=1, num_outputs=blocks) if blocks > 1 else [codes]
    last = op.Constant(value_ints=[-1])
    found = []
    for part in parts:
        products = op.MatMulInteger(part, bank)
        grouped = op.Reshape(products, op.Constant(value_ints=[0, 0, bank.shape[1] // group, group]))
        _, best = op.TopK(op.ReduceMax(grouped, last, keepdims=0), op.Constant(value_ints=[count]))
        rows = op.GatherND(grouped, op.Unsqueeze(best, last), batch_dims=2)
        inside = op.ArgMax(rows, axis=-1, keepdims=0)
        found.append(op.Add(op.Mul(best, op.Constant(value_int=group)), inside))
    return op.Concat(*found, axis=1) if blocks > 1 else found[0]


class Nearest(nn.Module):
    """Patches `(N, P, C)` -> index of the nearest of `bank` `(M, C)`, int64 `(N, P)`, and the distance to it, float32.

    Candidates are found with patches and bank rounded to 8 and 7 bits, and then measured in full: the distance is
    always the true one to the entry that is named, which now and then is the second nearest.
    """

    bank: Tensor
    mean: Tensor
    step: Tensor
    extra: Tensor
    codes: Tensor

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        centred = bank - bank.mean(0)
        some = centred.abs().flatten()[:: max(1, centred.numel() // 2**20)]
        reach = some.quantile(REACH).clamp(min=1e-12)
        # 7 bits: processors without 8-bit dot products add pairs of products in 16 bits, which must not overflow.
        step, coarse = reach / 127, reach / 63
        codes = (centred / coarse).round().clamp(-63, 63)
        # |q - m|^2 = |q|^2 - 2 (q.m - |m|^2 / 2): the largest bracket wins. |m| is that of the rounded m, so that what
        # was rounded away does not count at all; and 128 is what a patch's codes have too much.
        offset = -(codes.square().sum(1) / 2 * coarse / step) - 128 * codes.sum(1)
        steps, more = _digits(offset.round())
        every = torch.cat([codes, more], 1)
        self.group = min(GROUP, max(1, len(bank) // GROUPS))
        room = -len(bank) % self.group  # the last group is filled up with the last entry
        every = torch.cat([every, every[-1:].expand(room, -1)])
        self.register_buffer("bank", bank)
        self.register_buffer("mean", bank.mean(0))
        self.register_buffer("step", step)
        self.register_buffer("extra", steps)
        self.register_buffer("codes", every.T.to(torch.int8).contiguous())
        self.count = min(CANDIDATES, -(-len(bank) // self.group))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        found = candidates(self.coded(patches), self.codes, self.group, self.count).clamp(max=len(self.bank) - 1)
        distances = (patches[:, :, None] - self.bank[found]).square().sum(-1)  # (N, P, count)
        least, at = distances.min(2, keepdim=True)
        return found.gather(2, at)[:, :, 0], least[:, :, 0].sqrt()

    def coded(self, patches: Tensor) -> Tensor:
        """uint8 `(N, P, K)`: the patches in whole steps, 128 for the mean, and what the offsets are multiplied by."""
        codes = ((patches - self.mean) / self.step + 128).round().clamp(0, 255)
        return torch.cat([codes, self.extra.expand(*codes.shape[:2], -1)], 2).to(torch.uint8)


def _digits(offset: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers `(M,)` as products of small ones: `steps` `(D,)` in 0..255 and `digits` `(M, D)` in -63..63, with
    `digits @ steps` equal to `offset` but for one constant. So an offset costs a few columns of the product, and not
    one more pass over all that comes out of it."""
    offset = offset.double()
    offset = offset - ((offset.max() + offset.min()) / 2).round()
    columns = int(-(-offset.abs().max() // (255 * 63)))
    steps, digits = [255.0] * columns + [64.0, 1.0], []
    for step in steps:
        digit = (offset / step).round().clamp(-63, 63)
        offset = offset - digit * step
        digits.append(digit)
    assert not offset.any()
    return torch.tensor(steps), torch.stack(digits, 1).float()
