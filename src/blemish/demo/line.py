"""A drawn production line: turned metal flanges, woven cloth and circuit boards, good and defective, without downloads.

Every image is drawn from its own seed, so drawing more of them changes none. The mask of a defective part is what
its defects changed: the part is drawn twice, with and without them, and photographed by the same camera.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.demo import board, cloth, flange
from blemish.demo.drawing import Array, Flaw, camera, changed, digitise, expose, generator
from blemish.types import BlemishError, Progress, silent

VERSION = 1  # of the drawings: raised when the same seed no longer gives the same images
COMBINED = "combined"  # the folder of parts with two defects, as in MVTec AD
LEAST = 1e-4  # of the image that a defect must change: 26 pixels of 512 x 512
VISIBLE = 4.0  # grey levels that a pixel must change by to count as defective


class DemoError(BlemishError):
    """A demo line that cannot be drawn as asked."""


@dataclass(frozen=True, slots=True)
class Product:
    """Something the line makes: what it is, which defects it can have, and the function that draws its scene.

    A mask fills gaps in what changed up to twice `fill` pixels wide (in an image of 512): there the part happens to
    look as before, as between the threads that a snag has moved.
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
    product: str, number: int, *, seed: int = 0, defects: Sequence[str] = (), size: int = 512, part: str = "train"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draws one part: the image `uint8 (size, size, 3)` RGB, and the mask `bool (size, size)` of what is defective.

    `part` and `number` name the part; with the same seed they give the same part, good or with `defects` (names from
    `PRODUCTS[product].defects`, one may occur twice). Severity follows the number, from obvious to subtle.

    Raises DemoError for an unknown product or defect, or a size below 64.
    """
    made = _product(product)
    for defect in defects:
        if defect not in made.defects:
            raise DemoError(f"{product!r} has no defect {defect!r}: choose from {', '.join(made.defects)}.")
    if size < 64:
        raise DemoError(f"A demo image of {size} pixels is too small to draw: ask for at least 64.")
    key = (seed, product, part, number)
    fill = max(1, round(made.fill * size / 512))
    settings = camera(generator(*key, "camera"), size)
    before = expose(made.scene(key, size, ()), settings)
    if not defects:
        return digitise(before, settings), np.zeros((size, size), np.bool_)
    flaws: list[Flaw] = []
    for n, kind in enumerate(defects):
        for attempt in range(6):  # where chance hid the defect (behind a part, in a hole), it is drawn elsewhere
            flaw = Flaw(kind, min(1.0, _severity(number + n) + 0.1 * attempt), (*key, kind, n, attempt))
            after = expose(made.scene(key, size, [flaw]), settings)
            mask = changed(before, after, VISIBLE, fill)
            if mask.mean() >= LEAST:
                break
        flaws.append(flaw)
    if len(flaws) > 1:
        after = expose(made.scene(key, size, flaws), settings)
        mask = changed(before, after, VISIBLE, fill)
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
    """One image to draw, and where it and its mask go."""

    product: str
    part: str
    number: int
    defects: tuple[str, ...]
    image: Path
    mask: Path | None
    seed: int
    size: int

    def run(self) -> None:
        """Draws and writes; the mask first, so that an image never stands without it."""
        pixels, mask = draw(
            self.product, self.number, seed=self.seed, defects=self.defects, size=self.size, part=self.part
        )
        if self.mask is not None:
            _save(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)), self.mask)
        _save(Image.fromarray(pixels), self.image)


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

    `OUT/<product>/train/good`, `test/good`, `test/<defect>` (`defective` images of each type, and as many with two
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
    """Writes the settings into a new folder, or checks that an old one has the same. Raises DemoError."""
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
            image = folder / "test" / kind / f"{n:03d}.png"
            mask = folder / "ground_truth" / kind / f"{n:03d}_mask.png"
            defects = pair if kind == COMBINED else (kind,)
            yield _Task(name, f"test/{kind}", n, defects, image, mask, seed, size)


def _perform(tasks: Sequence[_Task], workers: int) -> Iterator[None]:
    """Draws all tasks, yielding once for each that is done; with several workers in processes of their own.

    Plain subprocesses rather than multiprocessing: they neither copy the caller's threads (torch, BLAS) half-way, as a
    fork does, nor run the caller's script a second time, as a spawned process does.
    """
    if workers < 2 or len(tasks) < 8:
        for task in tasks:
            task.run()
            yield
        return
    done, tick = os.pipe()
    code = "from blemish.demo.line import _serve; _serve()"
    paths = {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        for n in range(workers):
            helper = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=tick,
                stderr=subprocess.PIPE,
                env={**os.environ, **paths},
            )
            helpers.append(helper)
            assert helper.stdin is not None
            helper.stdin.write(json.dumps([asdict(task) for task in tasks[n::workers]], default=str).encode())
            helper.stdin.close()
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
            helper.kill()
            helper.wait()
            if helper.stderr is not None:
                helper.stderr.close()


def _serve() -> None:
    """Draws the tasks that stand on standard input as JSON, and writes one byte to standard output after each."""
    for item in json.load(sys.stdin):
        mask = Path(item["mask"]) if item["mask"] else None
        task = _Task(**{**item, "defects": tuple(item["defects"]), "image": Path(item["image"]), "mask": mask})
        try:
            task.run()
        except OSError as error:
            sys.exit(str(error.strerror or error))
        os.write(1, b".")
