"""A drawn production line: turned metal flanges, woven cloth and circuit boards, good and defective, without downloads.

Every picture is drawn from its own seed, so drawing more of them changes none. The mask of a defective part is what
its defects changed: the part is drawn twice, with and without them, and photographed by the same camera.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.data import demo_board, demo_fabric, demo_metal
from blemish.data.drawing import Array, Flaw, camera, changed, digitise, expose, generator
from blemish.types import BlemishError, Progress, silent

VERSION = 1  # of the drawings: raised when the same seed no longer gives the same pictures
COMBINED = "combined"  # the folder of parts with two defects, as in MVTec AD
VISIBLE = 4.0  # grey levels that a pixel must change by to count as defective


class DemoError(BlemishError):
    """A demo line that cannot be drawn as asked."""


@dataclass(frozen=True, slots=True)
class Product:
    """Something the line makes: what it is, which defects it can have, and the function that draws its scene."""

    title: str
    defects: tuple[str, ...]
    scene: Callable[[Sequence[int | str], int, Sequence[Flaw]], Array]


PRODUCTS: Mapping[str, Product] = MappingProxyType(
    {
        "flange": Product("turned steel flange", demo_metal.DEFECTS, demo_metal.scene),
        "cloth": Product("woven cloth", demo_fabric.DEFECTS, demo_fabric.scene),
        "board": Product("printed circuit board", demo_board.DEFECTS, demo_board.scene),
    }
)


def draw(
    product: str, number: int, *, seed: int = 0, defects: Sequence[str] = (), size: int = 512, part: str = "train"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draws one part: the picture `uint8 (size, size, 3)` RGB, and the mask `bool (size, size)` of what is defective.

    `part` and `number` name the part; with the same seed they give the same part, good or with `defects` (names from
    `PRODUCTS[product].defects`, one may occur twice). Severity follows the number, from obvious to subtle.

    Raises DemoError for an unknown product or defect, or a size below 64.
    """
    made = _product(product)
    for defect in defects:
        if defect not in made.defects:
            raise DemoError(f"{product!r} has no defect {defect!r}: choose from {', '.join(made.defects)}.")
    if size < 64:
        raise DemoError(f"A demo picture of {size} pixels is too small to draw: ask for at least 64.")
    key = (seed, product, part, number)
    settings = camera(generator(*key, "camera"), size)
    before = expose(made.scene(key, size, ()), settings)
    if not defects:
        return digitise(before, settings), np.zeros((size, size), np.bool_)
    flaws = [Flaw(kind, _severity(number + n), (*key, kind, n)) for n, kind in enumerate(defects)]
    after = expose(made.scene(key, size, flaws), settings)
    return digitise(after, settings), changed(before, after, VISIBLE, max(1, round(size / 256)))


def _severity(number: int) -> float:
    """0.25 subtle .. 1 obvious; consecutive numbers spread evenly (golden-ratio steps)."""
    return 1.0 - 0.75 * (number * 0.6180339887 % 1.0)


def _product(name: str) -> Product:
    if name not in PRODUCTS:
        raise DemoError(f"There is no demo product {name!r}: choose from {', '.join(PRODUCTS)}.")
    return PRODUCTS[name]


@dataclass(frozen=True, slots=True)
class _Task:
    """One picture to draw, and where it and its mask go."""

    product: str
    part: str
    number: int
    defects: tuple[str, ...]
    picture: Path
    mask: Path | None
    seed: int
    size: int

    def run(self) -> None:
        """Draws and writes; the mask first, so that a picture never stands without it."""
        pixels, mask = draw(
            self.product, self.number, seed=self.seed, defects=self.defects, size=self.size, part=self.part
        )
        if self.mask is not None:
            _save(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)), self.mask)
        _save(Image.fromarray(pixels), self.picture)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    image.save(temporary, format="PNG", compress_level=2)
    temporary.replace(path)


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

    `OUT/<product>/train/good`, `test/good`, `test/<defect>` (`defective` pictures of each type, and as many with two
    defects in `combined`), `ground_truth/<defect>/000_mask.png`. `OUT/<product>/demo.json` holds the settings: a rerun
    with the same ones draws only what is missing.

    Raises DemoError for an unknown product, a folder that was drawn with other settings, or one it cannot write to.
    """
    out = Path(out)
    names = list(PRODUCTS) if products is None else list(dict.fromkeys(products))
    tasks: list[_Task] = []
    try:
        for name in names:
            _product(name)
            _claim(out / name, seed, size)
            tasks += _tasks(out / name, name, train, good, defective, seed, size)
        tasks = [task for task in tasks if not (task.picture.exists() and (task.mask is None or task.mask.exists()))]
        for _ in progress(_perform(tasks, workers), "drawing", len(tasks)):
            pass
    except OSError as error:
        raise DemoError(
            f"Cannot write the demo line to {out}: {error.strerror or error}. Choose a folder you may write to."
        ) from error
    return [out / name for name in names]


def _claim(folder: Path, seed: int, size: int) -> None:
    """Writes the settings into a new folder, or checks that an old one has the same."""
    settings = {"drawings": VERSION, "seed": seed, "size": size}
    card = folder / "demo.json"
    folder.mkdir(parents=True, exist_ok=True)
    if card.exists():
        try:
            found = json.loads(card.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != settings:
            raise DemoError(
                f"{folder} holds a demo line drawn with {found}, not {settings}: choose another folder or remove it."
            )
        return
    if any(folder.iterdir()):
        raise DemoError(f"{folder} already holds other files: choose another folder for the demo line.")
    temporary = card.with_suffix(".tmp")
    temporary.write_text(json.dumps(settings), encoding="utf-8")
    temporary.replace(card)


def _tasks(folder: Path, name: str, train: int, good: int, defective: int, seed: int, size: int) -> Iterator[_Task]:
    for part, count in (("train", train), ("test", good)):
        for n in range(count):
            yield _Task(name, f"{part}/good", n, (), folder / part / "good" / f"{n:03d}.png", None, seed, size)
    kinds = PRODUCTS[name].defects
    for kind in (*kinds, COMBINED):
        for n in range(defective):
            pair = (kinds[n % len(kinds)], kinds[(n + 1 + n // len(kinds)) % len(kinds)])
            picture = folder / "test" / kind / f"{n:03d}.png"
            mask = folder / "ground_truth" / kind / f"{n:03d}_mask.png"
            defects = pair if kind == COMBINED else (kind,)
            yield _Task(name, f"test/{kind}", n, defects, picture, mask, seed, size)


def _perform(tasks: Sequence[_Task], workers: int) -> Iterator[None]:
    if workers < 2 or len(tasks) < 8:
        for task in tasks:
            task.run()
            yield
        return
    with ProcessPoolExecutor(min(workers, len(tasks))) as pool:
        yield from pool.map(_Task.run, tasks, chunksize=2)
