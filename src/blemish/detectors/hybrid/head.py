"""A head that learns from defects, on the frozen features of PatchCore: after SuperSimpleNet (Rolih et al. 2024,
"SuperSimpleNet: Unifying Unsupervised and Supervised Learning for Fast and Reliable Surface Defect Detection").

Of the paper are the adaptor, the map from each cell's features, and the losses: truncated L1 and focal loss of the map,
focal loss of the score. Three things are other than there, each because it found more (docs/few-defects.md). The head
also sees how far a cell is from normal. An image's score is the mean of the highest cells of its map, which needs no
layers of its own, so an image that is called defective without a mask trains the map through its score. And there are
several small heads, each trained without one fold of the images, instead of one large one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blemish.detectors.hybrid.config import HybridConfig
from blemish.detectors.nn.loop import Plan, Records, Step, Terms
from blemish.detectors.nn.runs import descend_run
from blemish.types import Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PAIRS, BATCH = 160, 8  # pairs of a good and a defective image in an epoch, and in a step
SLOPE = 0.2  # of LeakyReLU, as published
TRUNCATED = 0.5  # beyond which a cell's logit is no longer pushed, as published
FOCUS = 2.0  # gamma of the focal loss (Lin et al. 2017)
MAP_WEIGHT = 0.25  # of the map's losses beside the score's
DEVIATION = 3.0  # deviations from normal are divided by it, so that they are about as large as the features


class Head(nn.Module):
    """Patches `(N, P, C)` and their deviations from normal `(N, P)` -> each cell's logit `(N, P)` of being defective,
    and the image's `(N,)`. `mean` and `std` (C,) are those of good images' patches."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, hidden: int, top: float) -> None:
        super().__init__()
        self.adaptor = nn.Linear(len(mean) + 1, hidden)
        self.cell = nn.Linear(hidden, 1)
        self.offset = nn.Parameter(torch.zeros(()))
        self.top = top
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, patches: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
        # The adaptor of standardised patches, written so that the patches need not be copied: a third of the time.
        weight = self.adaptor.weight[:, :-1] / self.std
        adapted = F.linear(patches, weight, self.adaptor.bias - weight @ self.mean)
        adapted = adapted + deviations[..., None] * (self.adaptor.weight[:, -1] / DEVIATION)
        cells = self.cell(F.leaky_relu(adapted, SLOPE))[..., 0]
        highest = cells.topk(max(1, int(self.top * cells.shape[1])), 1).values
        return cells, highest.mean(1) + self.offset


@dataclass(frozen=True)
class Known:
    """What is known of each of n images: its row in the cached `patches` (rows, P, C), its `deviations` (n, P),
    whether it is `defective` (n,) bool, and where: `cells` (n, P) bool, which counts where `located` (n,) bool says so
    (all good images, and defective ones with a mask). `mean` and `std` (C,) are those of good images' patches. `facts`,
    which JSON can hold, are what a checkpoint depends on."""

    patches: Tensor
    rows: Tensor
    deviations: Tensor
    defective: Tensor
    cells: Tensor
    located: Tensor
    mean: Tensor
    std: Tensor
    facts: tuple[object, ...]

    def inputs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """A head's inputs of the images `chosen` (int64)."""
        return self.patches[self.rows[chosen]], self.deviations[chosen]


def untrained(known: Known, config: HybridConfig, number: int) -> Head:
    """A head with weights drawn from the seed and its number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(config, number))
        return Head(known.mean, known.std, config.hidden, config.top)


def train(
    fabric: Fabric,
    head: Head,
    known: Known,
    images: Tensor,
    config: HybridConfig,
    number: int,
    progress: Progress = silent,
) -> Records:
    """Trains `head`, the one of this `number`, in place on `images` (int64). A sample is a pair of a good and a
    defective image, so that both weigh the same however few defects there are."""
    seed = _seed(config, number)
    good, bad = images[~known.defective[images]], images[known.defective[images]]

    def loss(model: nn.Module, chosen: Tensor, epoch: int) -> Terms:
        random = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        pairs = torch.stack([_drawn(part, random) for part in (good, bad)])[:, chosen.cpu()]
        of_pairs = pairs.flatten()
        patches, deviations = known.inputs(of_pairs)
        device = fabric.device
        cells, scores = model(patches.to(device), deviations.to(device))
        targets = known.defective[of_pairs].float().to(device)
        by_cell = map_loss(cells, known.cells[of_pairs].to(device), known.located[of_pairs].to(device))
        total = focal(scores, targets).mean() + MAP_WEIGHT * by_cell
        count = total.new_tensor(float(len(chosen)))
        right = ((scores.detach() > 0).float() == targets).float().mean() * count
        return Terms(total * count, count, {"right": right})

    optimiser = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.decay)
    return descend_run(
        f"head-{number + 1}",
        config,
        (*known.facts, images.tolist()),
        head,
        [Step(optimiser, loss)],
        PAIRS,
        Plan(epochs=config.epochs, batch=BATCH, seed=seed, one_cycle=True),
        fabric=fabric,
        progress=progress,
    )


def _seed(config: HybridConfig, number: int) -> int:
    """Of one head: all are to differ."""
    return config.seed * 1_000 + number


def _drawn(rows: Tensor, random: torch.Generator) -> Tensor:
    """`PAIRS` of the rows in random order, each as often as the others, give or take one."""
    times = -(-PAIRS // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=random)] for _ in range(times)])[:PAIRS]


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """The focal loss of each logit: cross-entropy, less where the right answer is already sure (Lin et al. 2017)."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return entropy * (1 - torch.exp(-entropy)) ** FOCUS


def map_loss(cells: Tensor, defective: Tensor, located: Tensor) -> Tensor:
    """Truncated L1 and focal loss of the cells' logits `(N, P)`, the mean over normal cells and that over defective
    ones added; only of images whose defects are `located` (N,)."""
    counted = located[:, None].expand_as(cells)
    missing = torch.where(defective, TRUNCATED - cells, TRUNCATED + cells).clamp(min=0)
    each = missing + focal(cells, defective.float())
    total = cells.new_zeros(())
    for kind in (defective & counted, ~defective & counted):
        total = total + (each * kind).sum() / kind.sum().clamp(min=1)
    return total
