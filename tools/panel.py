"""Draws the results of a run of `blemish train --detector attention` on some test images, a row each, for the docs:
image, reconstruction, heat and boxes, heat and boxes of other runs on the same images, mask.

    python tools/panel.py RUN DATA test/crack/003.png ... --also OTHER-RUN -o docs/attention.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from blemish.data import layouts
from blemish.images import load_image, load_mask
from blemish.inference.overlay import save

SIDE, GAP = 256, 6  # of a cell and between cells, in pixels


def panel(run: Path, data: Path, names: list[str], also: list[Path]) -> Image.Image:
    """A row for each of `names` (as in `verdicts.jsonl`); without a mask its cell is white."""
    drawn = [run / "reconstruction", run / "overlays", *(other / "overlays" for other in also)]
    columns = 2 + len(drawn)
    samples = {sample.name: sample for sample in layouts.read(data).samples}
    sheet = Image.new("RGB", (columns * (SIDE + GAP) - GAP, len(names) * (SIDE + GAP) - GAP), "white")
    for row, name in enumerate(names):
        image = load_image(samples[name].path)
        cells = [Image.fromarray(image)]
        for folder in drawn:
            with Image.open(folder / f"{name}.jpg") as overlay:
                cells.append(overlay.convert("RGB"))
        if mask := samples[name].mask:
            shape = (image.shape[0], image.shape[1])
            cells.append(Image.fromarray(load_mask(mask, shape).astype("uint8") * 255).convert("RGB"))
        for column, cell in enumerate(cells):
            cell.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            left, top = column * (SIDE + GAP), row * (SIDE + GAP)
            sheet.paste(cell, (left + (SIDE - cell.width) // 2, top + (SIDE - cell.height) // 2))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--also", type=Path, action="append", default=[], metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    save(panel(options.run, options.data, options.names, options.also), options.out)


if __name__ == "__main__":
    main()
