"""The layouts of published data sets that have files or folders of their own."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from blemish.data.mask_names import masks_beside
from blemish.data.reading import LayoutError, Listing, MisfitError, Reading, counts, one_and, sample, stem
from blemish.images import ImageError, load_mask, read_size
from blemish.listing import natural
from blemish.types import Label, Sample, SplitName

GAP = 200  # fewest frames of the film between two magnetic tiles; docs/data.md says how well that groups them


def visa(folder: Listing) -> Reading:
    """split_csv/1cls.csv (object, split, label, image, mask) in the folder or beside it; one object is read."""
    for top in (folder.root, folder.root.resolve().parent):
        table = top / "split_csv" / "1cls.csv"
        if table.is_file():
            break
    else:
        raise MisfitError("no split_csv/1cls.csv in it or beside it")
    rows = _visa_rows(table)
    objects = sorted({row["object"] for row in rows}, key=natural)
    if top == folder.root:
        present = [name for name in objects if (top / name).is_dir()]
        if len(present) > 1:
            raise LayoutError(
                f"{folder.root} holds {len(present)} products ({one_and(present)}); "
                f"give one of them, for example {folder.root / present[0]}."
            )
        chosen, inside = (present[0] if present else ""), ""
    else:
        chosen, inside = folder.root.resolve().name, folder.root.resolve().name + "/"
    if chosen not in objects:
        raise MisfitError(f"{table} names {one_and(objects)}, and no such folder is here")
    samples = []
    for line, row in enumerate(rows, start=2):
        if row["object"] == chosen:
            samples.append(_visasample(folder, table, line, row, inside))
    if len({sample.name for sample in samples}) < len(samples):
        raise LayoutError(f"{table} names an image of {chosen} twice; remove the second row.")
    return Reading(samples, f"{table.name} lists {chosen}; {counts(samples)}")


def _visa_rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LayoutError(f"{table} cannot be read as CSV ({error}); copy it again.") from error
    wanted = {"object", "split", "label", "image", "mask"}
    if not rows or not wanted <= rows[0].keys():
        raise LayoutError(f"{table} needs the columns object, split, label, image, mask and at least one row.")
    return rows


def _visasample(folder: Listing, table: Path, line: int, row: dict[str, str], inside: str) -> Sample:
    labels: dict[str, Label] = {"normal": "good", "anomaly": "anomaly"}
    splits: dict[str, SplitName] = {"train": "train", "test": "test"}
    if row["label"] not in labels or row["split"] not in splits:
        raise LayoutError(
            f"{table}, line {line}: expected split train or test and label normal or anomaly; "
            f"got {row['split']!r} and {row['label']!r}."
        )
    label = labels[row["label"]]
    names = []
    for name in (row["image"], row["mask"] if label == "anomaly" else ""):
        clean = PurePosixPath(name)
        unsafe = clean.is_absolute() or ".." in clean.parts or "\\" in name or ":" in name
        unsafe = unsafe or bool(name and name != str(clean))
        if unsafe or not name.startswith(inside if name else ""):
            raise LayoutError(f"{table}, line {line}: {name!r} leads out of {folder.root}; correct the row.")
        names.append(name.removeprefix(inside))
        if names[-1] and not (folder.root / names[-1]).is_file():
            raise LayoutError(f"{table}, line {line}: {name!r} is not there; copy the data set again.")
    image, mask = names
    if not image:
        raise LayoutError(f"{table}, line {line}: names no image; correct the row.")
    return Sample(
        path=folder.root / image,
        name=image,
        label=label,
        defect="anomaly" if label == "anomaly" else "",
        mask=folder.root / mask if mask else None,
        split=splits[row["split"]],
    )


def magnetic_tile(folder: Listing) -> Reading:
    """MT_Free/Imgs (good) and MT_<defect>/Imgs; the PNG beside a JPEG is its mask. Images `exp<exposure>_num_<frame>`
    are grouped by tile."""
    if not folder.images("MT_Free/Imgs"):
        raise MisfitError("no images in MT_Free/Imgs")
    reading = Reading([])
    for name in folder.folders:
        if not name.startswith("MT_"):
            continue
        good, within = name == "MT_Free", f"{name}/Imgs"
        images = folder.images(within)
        masks = {stem(file): file for file in images if file.lower().endswith(".png")}
        pictures = [file for file in images if file.lower().endswith((".jpg", ".jpeg"))]
        of_stem = Counter(map(stem, pictures))
        for key, file in masks.items():
            fits = [f"{within}/{each}" for each in pictures if stem(each) == key] if of_stem[key] > 1 else []
            if fits and not good:
                reading.left[f"{within}/{file}"], reading.ambiguous[f"{within}/{file}"] = "mask-ambiguous", fits
            elif good or not of_stem[key]:
                reading.left[f"{within}/{file}"] = "mask-of-good" if good and of_stem[key] else "mask-unused"
        for file in pictures:
            mask = masks.get(stem(file), "") if not good and of_stem[stem(file)] == 1 else ""
            kind = "good" if good else name[3:]
            reading.samples.append(sample(folder, f"{within}/{file}", kind, f"{within}/{mask}" if mask else ""))
    reading.samples = _by_tile(reading.samples)
    reading.what = f"MT_Free is good, the other MT_ folders are defect types; {counts(reading.samples)}"
    return reading


def _by_tile(samples: list[Sample]) -> list[Sample]:
    """Groups images by tile, whatever their class; a tile has the number of its first frame. All images are frames of
    one film, in which each tile is filmed under several exposures before the next one."""
    numbered = ((sample, re.search(r"/exp[0-9]+_num_([0-9]+)\.[^.]+$", sample.name)) for sample in samples)
    frames = {sample.name: int(match[1]) for sample, match in numbered if match}
    tile: dict[int, str] = {}
    first, before = 0, -GAP - 1
    for frame in sorted(set(frames.values())):
        first = first if frame - before <= GAP else frame
        tile[frame], before = f"tile{first}", frame
    return [replace(s, group=tile[frames[s.name]]) if s.name in frames else s for s in samples]


def kolektorsdd2(folder: Listing) -> Reading:
    """train and test with images directly in them (or one folder of such images), and beside each image its mask,
    NAME_GT.png: the images whose mask marks something are defective. The masks are opened."""
    halves: list[tuple[str, SplitName]] = [("train/", "train"), ("test/", "test")]
    if not all(folder.images(name.rstrip("/")) for name, _ in halves):
        halves = [("", "")]
    reading = Reading([])
    for within, split in halves:
        images = folder.images(within.rstrip("/"))
        masks = {re.sub(r"(?i)[ _.-](gt|mask|label)$", "", stem(name)): name for name in masks_beside(images)}
        pictures = [name for name in images if name not in masks.values()]
        if not masks or not pictures or len(masks) < 0.9 * len(pictures):
            raise MisfitError("not every image has its mask NAME_GT.png beside it")
        for name in pictures:
            if stem(name) in masks:
                mask = f"{within}{masks[stem(name)]}"
                marked = _marks(folder.root / f"{within}{name}", folder.root / mask)
                kind = "defect" if marked else "good"
                reading.samples.append(sample(folder, f"{within}{name}", kind, mask if marked else "", split))
                if not marked:
                    reading.left[mask] = "mask-of-good"
    reading.what = f"images whose mask beside them marks something are defective; {counts(reading.samples)}"
    return reading


def _marks(image: Path, mask: Path) -> bool:
    try:
        width, height = read_size(image)
        return bool(load_mask(mask, (height, width)).any())
    except ImageError as error:
        raise LayoutError(f"Without its mask, {image} is neither good nor defective: {error}") from error
