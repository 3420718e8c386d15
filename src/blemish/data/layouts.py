"""What a folder means: each layout is one function here and one entry in LAYOUTS.

A reader gets a listing of the folder and returns its samples and a sentence that says what was read, or raises a
`MisfitError` that says what is missing for its layout. Only names are looked at; no image is opened.
Sources: "mvtec" Bergmann et al. 2019; "btad" Mishra et al. 2021; "visa" Zou et al. 2022; "magnetic-tile"
Huang et al. 2020; "folders" and "flat" are what people make themselves.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from blemish.images import listed
from blemish.listing import DEPTH, natural
from blemish.types import BlemishError, Label, Sample, SplitName, readable

GOOD = frozenset({"good", "ok", "normal"})  # folder names, in any case
MASKS = frozenset({"ground_truth", "masks"})
GAP = 200  # fewest frames of the film between two magnetic tiles; docs/data.md says how well that groups them


class LayoutError(BlemishError):
    """A folder that is no data set, or could be several: says what is there, what is expected and what to do."""


@dataclass(frozen=True)
class Dataset:
    """The samples of one folder in natural order, and `why` it was read as `layout`."""

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    why: str


class MisfitError(Exception):
    """Raised by a reader where the folder does not have its layout; the text says what is missing."""


@dataclass(frozen=True)
class Listing:
    """A folder as the readers see it: names only, listed on first use."""

    root: Path
    _known: dict[tuple[str, int], list[str]] = field(default_factory=dict, repr=False)

    def images(self, folder: str = "", depth: int = 0) -> list[str]:
        """Names relative to `folder` of the images in it, and in its own folders down to `depth`."""
        if (folder, depth) not in self._known:
            path = self.root / folder
            self._known[folder, depth] = listed(path, depth, count=False).images if path.is_dir() else []
        return self._known[folder, depth]

    @cached_property
    def folders(self) -> list[str]:
        """The folders directly in the root, hidden ones left out."""
        names = (entry.name for entry in self.root.iterdir() if entry.is_dir())
        return sorted((name for name in names if not name.startswith(".")), key=natural)

    def folders_in(self, folder: str) -> list[str]:
        path = self.root / folder
        return Listing(path).folders if path.is_dir() else []


Reading = tuple[list[Sample], str]  # the samples, and what was read as what


def read(path: Path | str, layout: str = "auto") -> Dataset:
    """The data set in the folder `path`, read as `layout`, or as the only layout that fits.

    Raises LayoutError where no layout fits, several do, or the folder holds several products.
    """
    root = Path(path)
    if not root.is_dir():
        cause = "is a file, not a folder" if root.exists() else "does not exist"
        raise LayoutError(f"{root} {cause}; give the folder that holds the images.")
    if layout != "auto" and layout not in LAYOUTS:
        raise LayoutError(f"There is no layout {layout!r}; use auto or one of {_and(LAYOUTS)}.")
    listing = Listing(root)
    readings: dict[str, Reading] = {}
    missing: dict[str, str] = {}
    for name in LAYOUTS if layout == "auto" else [layout]:
        try:
            readings[name] = LAYOUTS[name](listing)
        except MisfitError as misfit:
            missing[name] = str(misfit)
    if not readings:
        raise _no_layout(listing, missing)
    if list(readings) == ["flat"] and layout == "auto":
        _refuse_images_below(listing)
    if len(readings) > 1:
        raise LayoutError(f"{root} could be {_or(readings)}; say which with --layout.")
    ((name, (samples, what)),) = readings.items()
    chosen = "as asked" if layout != "auto" else "the only layout that fits"
    samples = [replace(sample, defect=readable(sample.defect)) for sample in samples]
    samples.sort(key=lambda sample: natural(sample.name))
    return Dataset(root, name, tuple(samples), f"Read as {name} ({chosen}): {what}.")


def mvtec(folder: Listing) -> Reading:
    """train/good (and train/<defect>), test/<defect>, ground_truth/<defect>/NAME_mask.png of the test split."""
    return _train_and_test(folder, "good")


def btad(folder: Listing) -> Reading:
    """train/ok, test/ok, test/ko, ground_truth/ko/NAME.png."""
    return _train_and_test(folder, "ok")


def _train_and_test(folder: Listing, good: str) -> Reading:
    if not folder.images(f"train/{good}"):
        raise MisfitError(f"no images in train/{good}")
    kinds = folder.folders_in("test")
    if not kinds:
        raise MisfitError("no folders in test")
    samples = _class_folder(folder, f"train/{good}", "good", split="train")
    for defect in folder.folders_in("train"):
        if defect != good:  # data sets for classifiers; ground_truth has the masks of the test split alone
            samples += _class_folder(folder, f"train/{defect}", defect, split="train")
    for name in kinds:
        kind = "good" if name.casefold() in GOOD else name
        samples += _class_folder(folder, f"test/{name}", kind, f"ground_truth/{name}", split="test")
    places = [f"ground_truth/{defect}" for defect in folder.folders_in("ground_truth") if defect not in GOOD]
    others = [name for name in folder.folders if name not in {"train", "test", "ground_truth"}]
    unread = f"; not read: {_and(others)}" if others else ""
    return samples, f"train/{good} and test with {_and(kinds)}; {_counts(folder, samples, places)}{unread}"


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
                f"{folder.root} holds {len(present)} products ({_and(present)}); "
                f"give one of them, for example {folder.root / present[0]}."
            )
        chosen, inside = (present[0] if present else ""), ""
    else:
        chosen, inside = folder.root.resolve().name, folder.root.resolve().name + "/"
    if chosen not in objects:
        raise MisfitError(f"{table} names {_and(objects)}, and no such folder is here")
    samples = []
    for line, row in enumerate(rows, start=2):
        if row["object"] == chosen:
            samples.append(_visa_sample(folder, table, line, row, inside))
    if len({sample.name for sample in samples}) < len(samples):
        raise LayoutError(f"{table} names an image of {chosen} twice; remove the second row.")
    return samples, f"{table.name} lists {chosen}; {_counts(folder, samples)}"


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


def _visa_sample(folder: Listing, table: Path, line: int, row: dict[str, str], inside: str) -> Sample:
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


def folders(folder: Listing) -> Reading:
    """good (or ok, normal) and one folder per defect type; masks in ground_truth/<type> or masks/<type>
    (or directly in these where there is one type)."""
    good = [name for name in folder.folders if name.casefold() in GOOD]
    if len(good) != 1:
        raise MisfitError(f"{_and(good)} are all names for good" if good else "no folder good, ok or normal")
    if halves := [name for name in folder.folders if name.casefold() in {"train", "test"}]:
        raise MisfitError(f"{_and(halves)} beside {good[0]}")
    samples = _class_folder(folder, good[0], "good", depth=DEPTH)
    if not samples:
        raise MisfitError(f"no images in {good[0]}")
    tops = [name for name in folder.folders if name.casefold() in MASKS]
    defects = [name for name in folder.folders if name not in {good[0], *tops} and folder.images(name, DEPTH)]
    places = []
    for defect in defects:
        masks = [f"{name}/{defect}" for name in tops]
        if len(defects) == 1:  # with several, the name alone would not say whose mask it is
            masks += tops
        samples += _class_folder(folder, defect, defect, *masks, depth=DEPTH)
        places += masks
    what = f"{good[0]} is taken for the good images"
    what += f" and {_and(defects)} for defect types" if defects else ""
    return samples, f"{what}; {_counts(folder, samples, places)}"


def magnetic_tile(folder: Listing) -> Reading:
    """MT_Free/Imgs (good) and MT_<defect>/Imgs; the PNG beside a JPEG is its mask. Images `exp<exposure>_num_<frame>`
    are grouped by tile."""
    if not folder.images("MT_Free/Imgs"):
        raise MisfitError("no images in MT_Free/Imgs")
    samples = []
    for name in folder.folders:
        if not name.startswith("MT_"):
            continue
        good = name == "MT_Free"
        within = f"{name}/Imgs"
        images = folder.images(within)
        masks = {file for file in images if file.endswith(".png") and not good}
        for file in images:
            if not file.lower().endswith((".jpg", ".jpeg")):
                continue
            mask = f"{_stem(file)}.png"
            mask = f"{within}/{mask}" if mask in masks else ""
            samples.append(_sample(folder, f"{within}/{file}", "good" if good else name[3:], mask))
    samples = _by_tile(samples)
    return samples, f"MT_Free is good, the other MT_ folders are defect types; {_counts(folder, samples)}"


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


def flat(folder: Listing) -> Reading:
    """Images directly in the folder, without labels."""
    names = folder.images()
    if not names:
        raise MisfitError("no images directly in it")
    samples = [_sample(folder, name) for name in names]
    return samples, f"{len(names)} images directly in the folder, none labelled"


LAYOUTS: dict[str, Callable[[Listing], Reading]] = {
    "mvtec": mvtec,
    "btad": btad,
    "visa": visa,
    "folders": folders,
    "magnetic-tile": magnetic_tile,
    "flat": flat,
}


def _class_folder(
    folder: Listing,
    within: str,
    kind: str,
    *masks: str,
    split: SplitName = "",
    depth: int = 0,
) -> list[Sample]:
    """The images of one class folder, with the mask NAME_mask.* or NAME.* from the mask folders."""
    known: dict[str, str] = {}
    for place in masks if kind != "good" else ():
        for name in folder.images(place, depth):
            known.setdefault(_stem(name), f"{place}/{name}")
    samples = []
    for name in folder.images(within, depth):
        stem = _stem(name)
        mask = known.get(f"{stem}_mask") or known.get(stem, "")
        samples.append(_sample(folder, f"{within}/{name}", kind, mask, split))
    return samples


def _sample(folder: Listing, name: str, kind: str = "", mask: str = "", split: SplitName = "") -> Sample:
    """`kind` is "good", a defect type, or "" where the image is unlabelled."""
    item = re.fullmatch(r"(.+)_Part[0-9]+", _stem(name).rpartition("/")[2])  # KolektorSDD: several views of one item
    return Sample(
        path=folder.root / name,
        name=name,
        label=None if not kind else "good" if kind == "good" else "anomaly",
        defect="" if kind == "good" else kind,
        mask=folder.root / mask if mask else None,
        split=split,
        group=item[1] if item else "",
    )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]  # listed names have a suffix; pathlib is slow


def _refuse_images_below(folder: Listing) -> None:
    """Images in the folder *and* in its folders: reading the first alone would silently drop the others."""
    deeper = [name for name in folder.folders if folder.images(name, DEPTH)]
    if deeper:
        raise LayoutError(
            f"{folder.root} has images directly in it and in its folders {_and(deeper)}, none of them named "
            "good; --layout flat reads the first and leaves the others, or name the folder of good images good."
        )


def _no_layout(folder: Listing, missing: dict[str, str]) -> LayoutError:
    """What to say of a folder that fits no layout: often it is one folder too high."""
    products = []
    for name in folder.folders[:100]:
        inside = Listing(folder.root / name)
        for layout, reader in LAYOUTS.items():
            if layout == "flat" or layout not in missing:
                continue
            try:
                reader(inside)
            except (MisfitError, LayoutError):
                continue
            products.append(name)
            break
    if len(products) > 1:
        return LayoutError(
            f"{folder.root} holds {len(products)} products ({_and(products)}), each a data set of its own; "
            f"give one of them, for example {folder.root / products[0]}."
        )
    if products:
        return LayoutError(f"{folder.root} is no data set, but its folder is; give {folder.root / products[0]}.")
    inside_it = [f"{len(folder.images())} images"] if folder.images() else []
    inside_it += [f"folder {name}" for name in folder.folders] or ["no folders"]
    expected = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    return LayoutError(
        f"{folder.root} fits no layout. Found: {_and(inside_it)}. Missing for {expected}. "
        "Put the good images into a folder good, and each defect type into a folder of its own."
    )


def _counts(folder: Listing, samples: list[Sample], mask_folders: Iterable[str] = ()) -> str:
    good = sum(sample.label == "good" for sample in samples)
    masks = {sample.mask for sample in samples if sample.mask}
    files = {folder.root / place / name for place in mask_folders for name in folder.images(place, DEPTH)}
    unused = f" ({len(files - masks)} files beside them belong to no image)" if files - masks else ""
    return f"{good} good, {len(samples) - good} defective, {len(masks)} masks{unused}"


def _and(names: Iterable[str]) -> str:
    return _listed(list(names), "and")


def _or(names: Iterable[str]) -> str:
    return _listed(list(names), "or")


def _listed(names: list[str], word: str) -> str:
    if len(names) > 10:
        names = [*names[:9], f"{len(names) - 9} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
