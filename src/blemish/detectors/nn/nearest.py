"""Nearest-neighbour search in a bank of patches: candidates from a product of integers, then their exact distances.

As |q - m|^2 = |q|^2 - 2 (q.m - |m|^2 / 2), the nearest entry m of a patch q has the largest q.m - |m|^2 / 2. With the
bank's mean subtracted, both are rounded to integers: q = step (c - 128) with codes c in 0..255, and m = coarse w with
codes w in -63..63. Divided by step coarse, q.m - |m|^2 / 2 is then

    c.w + offset(m)    with    offset(m) = -128 sum(w) - |w|^2 coarse / (2 step).

An offset is one integer for each entry, too large for 8 bits. It is written in digits (`as_digits`): the digits are
appended to w, their place values to c, and one product of a uint8 and an int8 matrix gives c.w + offset(m).

By hand: the bank a = (1, 1), b = (-1, -1), the patch q = (1, 0). Step is 1/127, coarse 1/63, so the codes are
w = (63, 63) and (-63, -63), c = (255, 128). The offsets are -128 * 126 - 7938 * 127/126 = -24129 and 8127, less their
middle -16128 and 16128. The products are 63 * (255 + 128) - 16128 = 8001 for a and -8001 for b: a is nearer, by
16002 step coarse = 2. And half of |q - b|^2 - |q - a|^2 = 5 - 1 is 2.

Most of PatchCore's inference time goes into this search, so it exists twice: as an operator for PyTorch, and as the
ONNX nodes that the exporter puts in its place, which take the patches in blocks. Both give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GROUP, GROUPS = 64, 32  # a bank is searched in groups of GROUP entries, but in at least GROUPS groups
CANDIDATES = 4  # groups whose best entry is measured exactly
BLOCK = 64  # patches multiplied at once in ONNX: their products stay in the processor's cache
REACH = 0.9999  # quantile of the bank's values that gets the largest code
# A bank's codes have 7 bits: processors without 8-bit dot products add pairs of products in 16 bits, which must not
# overflow. ZERO is the code of a patch at the bank's mean, as its codes are unsigned.
PATCH_CODE, BANK_CODE, ZERO = 127, 63, 128


@torch.library.custom_op("blemish::candidates", mutates_args=())
def candidates(codes: Tensor, bank: Tensor, group: int, count: int) -> Tensor:
    """`codes` uint8 `(N, P, K)`, `bank` int8 `(K, M)`, M a multiple of `group` -> columns of the bank int64
    `(N, P, count)`: of each of the `count` groups with the largest products, the column with its largest."""
    products = integer_product(codes, bank).view(*codes.shape[:2], -1, group)
    best = products.amax(3).sort(descending=True, stable=True).indices[..., :count]  # of equals the first, as in ONNX
    rows = products.gather(2, best[..., None].expand(-1, -1, -1, group))
    columns: Tensor = best * group + rows.argmax(3)
    return columns


@candidates.register_fake
def _(codes: Tensor, bank: Tensor, group: int, count: int) -> Tensor:  # noqa: ARG001
    return codes.new_empty(*codes.shape[:2], count, dtype=torch.long)


def integer_product(codes: Tensor, bank: Tensor) -> Tensor:
    """uint8 `(N, P, K)` times int8 `(K, M)` -> `(N, P, M)`, in floats that hold these sums exactly (below 2^24)."""
    kind = torch.float32 if 255 * 64 * len(bank) < 2**24 else torch.float64
    return codes.to(kind) @ bank.to(kind)


def candidates_in_onnx(codes: Any, bank: Any, group: int, count: int) -> Any:
    """`candidates` in ONNX, for the exporter. MatMulInteger of 8 bits takes a fraction of the time of floats."""
    from onnxscript import opset18 as op

    blocks = -(-codes.shape[1] // BLOCK)
    last = op.Constant(value_ints=[-1])
    columns = []
    for block in op.Split(codes, axis=1, num_outputs=blocks) if blocks > 1 else [codes]:
        products = op.MatMulInteger(block, bank)
        grouped = op.Reshape(products, op.Constant(value_ints=[0, 0, bank.shape[1] // group, group]))
        _, best = op.TopK(op.ReduceMax(grouped, last, keepdims=0), op.Constant(value_ints=[count]))
        rows = op.GatherND(grouped, op.Unsqueeze(best, last), batch_dims=2)
        inside = op.ArgMax(rows, axis=-1, keepdims=0)
        columns.append(op.Add(op.Mul(best, op.Constant(value_int=group)), inside))
    return op.Concat(*columns, axis=1) if blocks > 1 else columns[0]


class Nearest(nn.Module):
    """Patches `(N, P, C)` -> index of the nearest of `bank` `(M, C)`, int64 `(N, P)`, and the distance to it, float32.

    The distance is always the exact one to the entry that is named. Rounding can only make that entry the second
    nearest, which happens now and then.
    """

    bank: Tensor
    mean: Tensor
    step: Tensor
    place_values: Tensor
    codes: Tensor

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        centred = bank - bank.mean(0)
        sample = centred.abs().flatten()[:: max(1, centred.numel() // 2**20)]  # torch's quantile takes at most 2^24
        reach = sample.quantile(REACH).clamp(min=1e-12)
        step, coarse = reach / PATCH_CODE, reach / BANK_CODE
        codes = (centred / coarse).round().clamp(-BANK_CODE, BANK_CODE)
        # |w|, not |m|: what was rounded away from an entry then counts nowhere.
        offsets = -(codes.square().sum(1) / 2 * coarse / step) - ZERO * codes.sum(1)
        place_values, digits = as_digits(offsets.round())
        rows = torch.cat([codes, digits], 1)  # (M, C + D)
        self.group = min(GROUP, max(1, len(bank) // GROUPS))
        padding = -len(bank) % self.group  # the last group is filled up with the last entry
        rows = torch.cat([rows, rows[-1:].expand(padding, -1)])
        self.count = min(CANDIDATES, len(rows) // self.group)
        self.register_buffer("bank", bank)
        self.register_buffer("mean", bank.mean(0))
        self.register_buffer("step", step)
        self.register_buffer("place_values", place_values)
        self.register_buffer("codes", rows.T.to(torch.int8).contiguous())

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        columns = candidates(self.coded(patches), self.codes, self.group, self.count)
        entries = columns.clamp(max=len(self.bank) - 1)  # the padding repeats the last entry
        distances = (patches[:, :, None] - self.bank[entries]).square().sum(-1)  # (N, P, count)
        least, at = distances.min(2, keepdim=True)
        return entries.gather(2, at)[:, :, 0], least[:, :, 0].sqrt()

    def coded(self, patches: Tensor) -> Tensor:
        """uint8 `(N, P, C + D)`: the patches' codes, then the place values that the bank's digits are multiplied by."""
        codes = ((patches - self.mean) / self.step + ZERO).round().clamp(0, 255)
        return torch.cat([codes, self.place_values.expand(*codes.shape[:2], -1)], 2).to(torch.uint8)


def as_digits(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Integers `(M,)` -> place values `(D,)` in 0..255 and digits `(M, D)` in -63..63, both float32, such that
    `digits @ place_values` is `offsets` less their middle, a constant that no comparison depends on.

    As decimal digits, but with the place values 255, ..., 255, 64, 1, and digits may be negative. Of 20000, 0 and
    -14000 the middle is 3000, which leaves 17000, -3000 and -17000. The largest takes two places of 255:

         17000 =  63 * 255 +  4 * 255 - 1 * 64 - 21 * 1
         -3000 = -12 * 255 +  0 * 255 + 1 * 64 -  4 * 1
        -17000 = -63 * 255 -  4 * 255 + 1 * 64 + 21 * 1
    """
    left = offsets.double()
    left = left - ((left.max() + left.min()) / 2).round()
    places = int(-(-left.abs().max() // (255 * BANK_CODE)))
    place_values, digits = [255.0] * places + [64.0, 1.0], []
    for value in place_values:
        # What is left is at most 127 after the places of 255, at most 32 after that of 64, and then nothing.
        digit = (left / value).round().clamp(-BANK_CODE, BANK_CODE)
        left = left - digit * value
        digits.append(digit)
    assert not left.any()
    return torch.tensor(place_values), torch.stack(digits, 1).float()
