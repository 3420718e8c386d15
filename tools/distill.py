"""Makes `src/blemish/detectors/nn/bundled.safetensors`: a MobileNetV2 that has never seen a photograph.

    python -m tools.distill mobilenetv2_100_tf.safetensors            # resumes where it was interrupted

A student with random weights learns to give the features of its teacher, an ImageNet MobileNetV2, on the drawn images
of `procedural.py`. Both have the same 13 inverted residual blocks (Sandler et al. 2018, table 2, up to stride 16), so
every block has a target of its own: the teacher's output there, standardised per channel. No weight is copied.

Training has phases (features are matched as by Romero et al. 2015, shallow blocks first): the three blocks on fine
grids, which take two thirds of the time and learn fast, then the ten on coarse grids behind the frozen first three,
then all together. From some step of a phase on the statistics of the batch norms are frozen, as in inference, because
statistics of few and very different crops are a noise that the teacher does not have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blemish.files import replacing
from tools import procedural

SHARD = 500  # images per file
HELD_OUT = 1_000_000  # seeds from here on are never trained on
STAGES = (1, 2, 3, 4, 3)  # blocks per stage; the taps are the ends of stages 2 and 4
BUNDLED = Path(__file__).parents[1] / "src/blemish/detectors/nn/bundled.safetensors"


@dataclass(frozen=True, slots=True)
class Phase:
    """Trains blocks first <= b < last (with the stem where first is 0) for `steps` steps of AdamW, cosine schedule."""

    name: str
    first: int
    last: int
    images: int
    steps: int
    batch: int
    rate: float  # learning rate
    settled: float  # share of the steps after which batch norm statistics are frozen
    size: int = 128  # side of a crop in pixels
    end: float = 1.0  # loss weight of the end of a stage without a tap; the two taps have 1
    inner: float = 0.25  # loss weight of the other blocks


PHASES = (
    Phase("front", 0, 3, 6000, 1500, 16, 4e-3, 0.5, 96),
    Phase("deep", 3, 13, 6000, 1500, 32, 4e-3, 0.7),
    Phase("whole", 0, 13, 7000, 900, 16, 2.5e-3, 0.7, end=0.2, inner=0.05),
    Phase("again", 0, 13, 7000, 600, 16, 1.5e-3, 0.5, end=0.2, inner=0.05),
)


# ---- networks -------------------------------------------------------------------------------------------------


def mobilenet() -> Any:
    """A network with random weights, without the blocks behind the second tap; its input is (x - 127) / 127.5 of uint8
    images."""
    net = timm.create_model(
        "mobilenetv2_100", pretrained=False, features_only=True, out_indices=(2, 3), pad_type="same"
    )
    net.blocks = net.blocks[: len(STAGES)]
    return net.to(memory_format=torch.channels_last)


def load_teacher(path: Path) -> Any:
    net, weights = mobilenet(), load_file(path)
    net.load_state_dict({name: weights[name] for name in net.state_dict()})
    return net.eval().requires_grad_(False)


def walk(net: Any, x: Tensor, first: int, last: int) -> list[Tensor]:
    """The outputs of blocks first..last-1, from an image (first = 0) or from the output of block first - 1."""
    if first == 0:
        x = net.bn1(net.conv_stem(x))
    outputs = []
    for block in [block for stage in net.blocks for block in stage][first:last]:
        x = block(x)
        outputs.append(x)
    return outputs


def trained_modules(net: Any, phase: Phase) -> nn.ModuleList:
    """The modules that a phase trains."""
    blocks = [block for stage in net.blocks for block in stage][phase.first : phase.last]
    return nn.ModuleList([*([net.conv_stem, net.bn1] if phase.first == 0 else []), *blocks])


# ---- images -------------------------------------------------------------------------------------------------


def shard(folder: Path, index: int, processes: int) -> npt.NDArray[np.uint8]:
    """Images from index * SHARD on, drawn unless the folder has them. uint8 (SHARD, 192, 192, 3)"""
    path = folder / f"images-{index:03d}.npy"
    if not path.exists():
        seeds = range(index * SHARD, (index + 1) * SHARD)
        with Pool(processes) as pool:
            drawn = np.stack(pool.map(procedural.image, seeds, chunksize=8))
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, drawn)
    return np.asarray(np.load(path, allow_pickle=False), dtype=np.uint8)


def pool_of(folder: Path, count: int, processes: int) -> npt.NDArray[np.uint8]:
    shards = []
    for index in range(-(-count // SHARD)):
        shards.append(shard(folder, index, processes))
        print(f"\rimages {min(count, (index + 1) * SHARD)}/{count}", end="", flush=True)
    print()
    return np.concatenate(shards)[:count]


def to_input(images: Tensor) -> Tensor:
    return ((images - 127) / 127.5).contiguous(memory_format=torch.channels_last)


def crops(images: npt.NDArray[np.uint8], rng: np.random.Generator, batch: int, size: int) -> Tensor:
    """A training batch: crops of several scales, rotated and recoloured. float (batch, 3, size, size)"""
    cut = min(int(size * rng.choice([0.75, 1.0, 1.0, 1.25, 1.5])), images.shape[1])
    chosen = []
    for index in rng.integers(len(images), size=batch):
        top, left = rng.integers(images.shape[1] - cut + 1, size=2)
        crop = images[index, top : top + cut, left : left + cut]
        crop = np.rot90(crop, int(rng.integers(4)))
        chosen.append(crop[:, :, rng.permutation(3)] if rng.random() < 0.5 else crop)
    x = torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float()
    if cut != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    gain = torch.from_numpy(
        rng.uniform(0.6, 1.4, (batch, 1, 1, 1)) * rng.choice([1, 1, 1, -1], (batch, 1, 1, 1))
    ).float()
    shift = torch.from_numpy(rng.uniform(-30, 30, (batch, 1, 1, 1))).float()
    plain = torch.from_numpy(rng.random((batch, 1, 1, 1)) < 0.5)
    x = torch.where(plain, x, (x - 127) * gain + 127 + shift).clamp(0, 255)
    grey = torch.from_numpy(rng.random((batch, 1, 1, 1)) < 0.15)
    return to_input(torch.where(grey, x.mean(1, keepdim=True), x))


# ---- targets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    """Per channel, for each block: its target is (teacher - mean) / std."""

    mean: list[Tensor]
    std: list[Tensor]

    def __call__(self, outputs: list[Tensor], first: int) -> list[Tensor]:
        return [(y.float() - self.mean[i]) / self.std[i] for i, y in enumerate(outputs, first)]


def answers(teacher: nn.Module, x: Tensor, last: int) -> list[Tensor]:
    """The teacher's outputs, in bfloat16: its rounding is far below the student's error."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return walk(teacher, x, 0, last)


def measure_scale(teacher: nn.Module, images: npt.NDArray[np.uint8], size: int) -> Scale:
    """Mean and standard deviation at each stage's end, used for all blocks of the stage: they add up along one residual
    stream, which remains a sum only on a common scale."""
    rng = np.random.default_rng(0)
    batches = [answers(teacher, crops(images, rng, 32, size), sum(STAGES)) for _ in range(24)]
    mean, std, end = [], [], 0
    for blocks in STAGES:
        end += blocks
        y = torch.cat([batch[end - 1].float() for batch in batches]).transpose(0, 1).flatten(1)
        mean += [y.mean(1).view(1, -1, 1, 1)] * blocks
        std += [y.std(1).clamp_min(1e-3).view(1, -1, 1, 1)] * blocks
    return Scale(mean, std)


def loss_of(outputs: list[Tensor], targets: list[Tensor], phase: Phase) -> Tensor:
    """Smooth L1, averaged over the blocks with the phase's weights."""
    ends = np.cumsum(STAGES) - 1
    weights = [
        1.0 if i in (ends[2], ends[4]) else phase.end if i in ends else phase.inner
        for i in range(phase.first, phase.last)
    ]
    losses = [w * F.smooth_l1_loss(y, t) for w, y, t in zip(weights, outputs, targets, strict=True)]
    return torch.stack(losses).sum() / sum(weights)


def explained(student: nn.Module, teacher: nn.Module, scale: Scale, images: npt.NDArray[np.uint8]) -> list[float]:
    """Share of the teacher's variance that the student explains at the end of each stage, on whole images, 0..1."""
    student.eval()
    ends = np.cumsum(STAGES) - 1
    missed, total = np.zeros(len(ends)), np.zeros(len(ends))
    for start in range(0, len(images), 16):
        x = to_input(torch.from_numpy(images[start : start + 16]).permute(0, 3, 1, 2).float())
        with torch.no_grad():
            ours = walk(student, x, 0, sum(STAGES))
            theirs = scale(walk(teacher, x, 0, sum(STAGES)), 0)
        for k, end in enumerate(ends):
            missed[k] += float((ours[end] - theirs[end]).square().sum())
            total[k] += float(theirs[end].square().sum())
    return [round(float(v), 4) for v in 1 - missed / total]


# ---- training -------------------------------------------------------------------------------------------------


def save(path: Path, student: nn.Module, optimiser: torch.optim.Optimizer, step: int, phase: Phase) -> None:
    tensors = {f"net.{name}": value.contiguous() for name, value in student.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"opt.{i}.{key}": value.contiguous() for key, value in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"step": str(step), "phase": json.dumps(asdict(phase))})


def restore(path: Path, student: nn.Module, optimiser: torch.optim.Optimizer, phase: Phase) -> int:
    """Loads a checkpoint of the same phase and returns the number of steps it was trained for."""
    with safe_open(path, "pt") as file:
        if json.loads(file.metadata()["phase"]) != asdict(phase):
            raise SystemExit(f"{path} belongs to another recipe: remove it, or choose another --work folder.")
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    student.load_state_dict({n.removeprefix("net."): v for n, v in tensors.items() if n.startswith("net.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("opt."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step


def train(
    student: nn.Module,
    teacher: nn.Module,
    scale: Scale,
    images: npt.NDArray[np.uint8],
    phase: Phase,
    checkpoint: Path,
    stop: int | None = None,
) -> Iterator[tuple[int, float]]:
    """Runs a phase from its checkpoint, or from its start; yields (steps done, loss). Each step draws its own random
    numbers, so a resumed run gives the same result. `stop` ends it early."""
    trained = trained_modules(student, phase)
    parameters = list(trained.parameters())
    optimiser = torch.optim.AdamW(parameters, phase.rate, weight_decay=1e-4)
    done = restore(checkpoint, student, optimiser, phase) if checkpoint.exists() else 0
    for step in range(done, min(phase.steps, stop or phase.steps)):
        warm = min(1.0, (step + 1) / min(100, phase.steps))
        for group in optimiser.param_groups:
            group["lr"] = phase.rate * warm * (0.5 + 0.5 * np.cos(np.pi * step / phase.steps)) + 1e-6
        student.eval()
        if step < phase.settled * phase.steps:
            trained.train()
        x = crops(images, np.random.default_rng([step, phase.first, phase.last]), phase.batch, phase.size)
        targets = scale(answers(teacher, x, phase.last)[phase.first :], phase.first)
        if phase.first:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                x = walk(student, x, 0, phase.first)[-1].float()
        loss = loss_of(walk(student, x, phase.first, phase.last), targets, phase)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 200 == 0 or step + 1 in (phase.steps, stop):
            save(checkpoint, student, optimiser, step + 1, phase)
        yield step + 1, float(loss.detach())


def distill(
    work: Path, teacher: nn.Module, phases: tuple[Phase, ...], processes: int, say: Callable[[str], None]
) -> tuple[nn.Module, list[float]]:
    """Runs all phases; returns the student and the share of the teacher's variance that it explains on held-out images,
    by stage."""
    held_out = np.stack([procedural.image(HELD_OUT + i) for i in range(128)])
    torch.manual_seed(0)
    student = mobilenet()
    scale: Scale | None = None
    score: list[float] = []
    for phase in phases:
        images = pool_of(work, phase.images, processes)
        scale = scale or measure_scale(teacher, images[: 2 * SHARD], phase.size)
        start, smoothed = time.monotonic(), 0.0
        for step, loss in train(student, teacher, scale, images, phase, work / f"{phase.name}.safetensors"):
            smoothed = loss if smoothed == 0 else 0.98 * smoothed + 0.02 * loss
            if step % 100 == 0 or step == phase.steps:
                say(f"{phase.name} {step}/{phase.steps} loss {smoothed:.4f} {time.monotonic() - start:.0f} s")
            if step % 500 == 0 or step == phase.steps:
                score = explained(student, teacher, scale, held_out)
                say(f"explained variance by stage: {score}")
    return student, score


def export(student: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Writes float16, for half the size; a test bounds the change of the features by rounding."""
    tensors = {n: v.half() if v.is_floating_point() else v for n, v in student.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in tensors.items()}, path, metadata)
    path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="safetensors of timm's mobilenetv2_100, num_classes=1001")
    parser.add_argument("--work", type=Path, default=Path("distill"), help="folder for images and checkpoints")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    teacher = load_teacher(arguments.teacher)
    student, score = distill(arguments.work, teacher, PHASES, arguments.threads, lambda line: print(line, flush=True))
    metadata = {
        "version": "1",
        "licence": "Apache-2.0",
        "architecture": "timm mobilenetv2_100, features_only, out_indices=(2, 3), pad_type=same, blocks[:5]",
        "input": "(x - 127) / 127.5 for RGB x in 0..255",
        "outputs": "the teacher's features, standardised per channel over the drawn images",
        "made": "tools/distill.py, from random weights on tools/procedural.py: no photograph, no foreign weight",
        "teacher": f"{arguments.teacher.name}, sha256 {hashlib.sha256(arguments.teacher.read_bytes()).hexdigest()}",
        "phases": json.dumps([asdict(phase) for phase in PHASES]),
        "explained_variance_by_stage": json.dumps(score),
    }
    export(student, arguments.out, metadata)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
