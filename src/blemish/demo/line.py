"""A drawn production line: turned metal flanges, woven cloth and circuit boards, good and defective, without downloads.

Every image is drawn from a seed of its own, so that drawing more of them changes none. The mask of a defective part is
what its defects changed: the part is drawn twice, with and without them, and photographed by the same camera.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.demo import board, cloth, flange
from blemish.demo.drawing import Array, Flaw, Mask, camera, changed, digitise, expose, generator
from blemish.files import replacing, write_text
from blemish.types import BlemishError, Progress, silent

VERSION = 1  # of the drawings: raised when the same seed no longer gives the same images
COMBINED = "combined"  # the folder of parts with two defects, as in MVTec AD
LEAST = 1e-4  # share of the image that a defect must change: 26 pixels of 512 x 512
VISIBLE = 4.0  # a pixel that changes by more grey levels than that is defective


class DemoError(BlemishError):
    """A demo line that cannot be drawn as asked."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product of the line: its title, the defects it can have, and the function that draws its scene.

    In masks, gaps of up to twice `fill` pixels (in an image of 512) between changed pixels are filled: there the part
    happens to look unchanged, for example between the threads that a snag has moved.
    """

    title: str
    defects: tuple[str, ...]
    scene: Callable[[Sequence[int | str], int, Sequence[Flaw]], Array]
    fill: int = 2


PRODUCTS: Mapping[str, Product] = MappingProxyType(
    {
        "flange": Product("turned steel flange", flange.DEFECTS, flange.scene),
        "cloth": Product("woven cloth", cloth.DEFECTS, cloth.scene, 4),
        "board": Product("printed circuit board", board.DEFECTS, board.scene),
    }
)


def draw(
    product: str, number: int, *, seed: int = 0, defects: Sequence[str] = (), size: int = 512, place: str = "train"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draws one part: the image `uint8 (size, size, 3)` RGB, and the mask `bool (size, size)` of its defects.

    `place` (its folder in the layout) and `number` identify the part: with the same seed they give the same part, good
    or with `defects` (names from `PRODUCTS[product].defects`, one may occur twice). The number sets the severity.

    Raises DemoError for an unknown product or defect, or a size below 64.
    """
    made = _product(product)
    for defect in defects:
        if defect not in made.defects:
            raise DemoError(f"{product!r} has no defect {defect!r}: choose from {', '.join(made.defects)}.")
    if size < 64:
        raise DemoError(f"A demo image of {size} pixels is too small to draw: ask for at least 64.")
    key = (seed, product, place, number)
    fill = max(1, round(made.fill * size / 512))
    settings = camera(generator(*key, "camera"), size)
    before = expose(made.scene(key, size, ()), settings)
    if not defects:
        return digitise(before, settings), np.zeros((size, size), np.bool_)

    def with_flaws(flaws: Sequence[Flaw]) -> tuple[Array, Mask]:
        after = expose(made.scene(key, size, flaws), settings)
        return after, changed(before, after, VISIBLE, fill)

    flaws: list[Flaw] = []
    for n, kind in enumerate(defects):
        for attempt in range(6):  # a defect that is hidden (behind a component, in a hole) is drawn elsewhere
            flaw = Flaw(kind, min(1.0, _severity(number + n) + 0.1 * attempt), (*key, kind, n, attempt))
            after, mask = with_flaws([flaw])
            if mask.mean() >= LEAST:
                break
        flaws.append(flaw)
    if len(flaws) > 1:
        after, mask = with_flaws(flaws)
    return digitise(after, settings), mask


def _severity(number: int) -> float:
    """0.25 subtle .. 1 obvious; consecutive numbers spread evenly (golden-ratio steps)."""
    return 1.0 - 0.75 * (number * 0.6180339887 % 1.0)


def _product(name: str) -> Product:
    if name not in PRODUCTS:
        raise DemoError(f"There is no demo product {name!r}: choose from {', '.join(PRODUCTS)}.")
    return PRODUCTS[name]


@dataclass(frozen=True, slots=True)
class _Task:
    """One image to draw, and the files that it and its mask are written to."""

    product: str
    place: str
    number: int
    defects: tuple[str, ...]
    image: Path
    mask: Path | None
    seed: int
    size: int

    def run(self) -> None:
        """Draws and writes; the mask first, so that there is never an image without its mask."""
        pixels, mask = draw(
            self.product, self.number, seed=self.seed, defects=self.defects, size=self.size, place=self.place
        )
        if self.mask is not None:
            save(mask_image(mask), self.mask, format="PNG", compress_level=2)
        save(Image.fromarray(pixels), self.image, format="PNG", compress_level=2)


def save(image: Image.Image, file: Path, **options: Any) -> None:
    """Writes an image whole or not at all, with Pillow's `options`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        image.save(temporary, **options)


def mask_image(mask: Mask) -> Image.Image:
    """A mask as a grey image of 0 and 255."""
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255))


def write_line(
    out: Path,
    *,
    products: Sequence[str] | None = None,
    train: int = 60,
    good: int = 20,
    defective: int = 6,
    seed: int = 0,
    size: int = 512,
    workers: int = 2,
    progress: Progress = silent,
) -> list[Path]:
    """Writes a production line in the MVTec AD layout and returns the product folders.

    `OUT/<product>/train/good`, `test/good`, `test/<defect>` (`defective` images of each type, and as many with two
    defects in `combined`), `ground_truth/<defect>/000_mask.png`. `OUT/<product>/demo.json` holds the settings: a rerun
    with the same settings draws only what is missing.

    Raises DemoError for an unknown product, a folder that was drawn with other settings, or one that is not writable.
    """
    out = Path(out)
    names = list(PRODUCTS) if products is None else list(dict.fromkeys(products))
    tasks: list[_Task] = []
    try:
        for name in names:
            _product(name)
            claim(out / name, seed, size)
            tasks += _tasks(out / name, name, train, good, defective, seed, size)
        tasks = [task for task in tasks if not (task.image.exists() and (task.mask is None or task.mask.exists()))]
        for _ in progress(_perform(tasks, workers), "drawing", len(tasks)):
            pass
    except OSError as error:
        raise DemoError(
            f"Cannot write the demo line to {out}: {error.strerror or error}. Choose a folder you may write to."
        ) from error
    return [out / name for name in names]


def claim(folder: Path, seed: int, size: int | list[int]) -> None:
    """Writes the settings into a new folder, or checks that an existing one has the same. Raises DemoError."""
    settings = {"drawings": VERSION, "seed": seed, "size": size}
    card = folder / "demo.json"
    folder.mkdir(parents=True, exist_ok=True)
    if card.exists():
        try:
            existing = json.loads(card.read_text(encoding="utf-8"))
        except ValueError:
            existing = None
        if existing != settings:
            raise DemoError(
                f"{folder} holds a demo line drawn with {existing}, not {settings}: choose another folder or remove it."
            )
        return
    if any(folder.iterdir()):
        raise DemoError(f"{folder} already holds other files: choose another folder for the demo line.")
    write_text(card, json.dumps(settings))


def _tasks(folder: Path, name: str, train: int, good: int, defective: int, seed: int, size: int) -> Iterator[_Task]:
    for split, count in (("train", train), ("test", good)):
        for n in range(count):
            yield _Task(name, f"{split}/good", n, (), folder / split / "good" / f"{n:03d}.png", None, seed, size)
    kinds = PRODUCTS[name].defects
    for kind in (*kinds, COMBINED):
        for n in range(defective):
            pair = (kinds[n % len(kinds)], kinds[(n + 1 + n // len(kinds)) % len(kinds)])
            image = folder / "test" / kind / f"{n:03d}.png"
            mask = folder / "ground_truth" / kind / f"{n:03d}_mask.png"
            defects = pair if kind == COMBINED else (kind,)
            yield _Task(name, f"test/{kind}", n, defects, image, mask, seed, size)


def _perform(tasks: Sequence[_Task], workers: int) -> Iterator[None]:
    """Draws all tasks and yields once after each; several workers are processes of their own.

    Plain subprocesses rather than multiprocessing: they neither copy the state of the caller's threads (torch, BLAS),
    as a fork does, nor run the caller's script a second time, as a spawned process does.
    """
    if workers < 2 or len(tasks) < 8:
        for task in tasks:
            task.run()
            yield
        return
    done, tick = os.pipe()
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        for n in range(workers):
            helpers.append(_helper(tick))
            _hand_over(helpers[-1], tasks[n::workers])
        os.close(tick)
        tick = -1
        while os.read(done, 1):  # each helper writes one byte per image; the pipe ends with the last helper
            yield
        for helper in helpers:
            assert helper.stderr is not None
            complaint = helper.stderr.read().decode(errors="replace").strip()
            if helper.wait() != 0:
                raise OSError(complaint.splitlines()[-1] if complaint else f"drawing ended with {helper.returncode}")
    finally:
        for end in (done, tick):
            if end >= 0:
                os.close(end)
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            try:
                helper.wait(timeout=5)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
            if helper.stderr is not None:
                helper.stderr.close()


def _helper(tick: int) -> subprocess.Popen[bytes]:
    """A process that draws, and writes to the pipe `tick`."""
    paths = {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", "from blemish.demo.line import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=tick,
        stderr=subprocess.PIPE,
        env={**os.environ, **paths},
    )


def _hand_over(helper: subprocess.Popen[bytes], tasks: Sequence[_Task]) -> None:
    assert helper.stdin is not None
    helper.stdin.write(json.dumps([asdict(task) for task in tasks], default=str).encode())
    helper.stdin.close()


def _serve() -> None:
    """In a helper: draws the tasks on standard input (JSON), and writes one byte to standard output after each.
    SIGTERM removes the file that is half written."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    for item in json.load(sys.stdin):
        mask = Path(item["mask"]) if item["mask"] else None
        task = _Task(**{**item, "defects": tuple(item["defects"]), "image": Path(item["image"]), "mask": mask})
        try:
            task.run()
        except OSError as error:
            sys.exit(str(error.strerror or error))
        os.write(1, b".")
