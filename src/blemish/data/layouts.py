"""What a folder means: each layout is one function here and one entry in LAYOUTS.

A reader gets a listing of the folder and returns its samples and a sentence that says what was read, or raises a
`MisfitError` that says what is missing for its layout. Names are looked at; images are opened only where names do not
tell a mask from a picture.
Sources: "mvtec" Bergmann et al. 2019; "btad" Mishra et al. 2021; "visa" Zou et al. 2022; "magnetic-tile"
Huang et al. 2020; "folders" and "flat" are what people make themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data.mask_names import Class, MaskFolder, Sorted, gather, masks_beside, names_masks, sort_folders
from blemish.data.published import kolektorsdd2, magnetic_tile, visa
from blemish.data.reading import (
    GOOD,
    LayoutError,
    Listing,
    MisfitError,
    Reading,
    counts,
    enumerated,
    one_and,
    sample,
)
from blemish.images import listed
from blemish.listing import DEPTH, LeftOut, is_own, natural, other_formats
from blemish.ownership import MARK
from blemish.types import Sample, readable


@dataclass(frozen=True)
class Dataset:
    """The samples of one folder in natural order, and `why` it was read as `layout`.

    Every file below the folder is the image of a sample, one of its `masks`, or in `left_out` with the reason.
    `ambiguous` has the masks that fit several images, and these.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    why: str
    masks: int = 0
    left_out: tuple[LeftOut, ...] = ()
    ambiguous: tuple[tuple[str, tuple[str, ...]], ...] = ()


def read(path: Path | str, layout: str = "auto") -> Dataset:
    """The data set in the folder `path`, read as `layout`, or as the only layout that fits.

    Raises LayoutError where no layout fits, several do, or the folder holds several products.
    """
    root = Path(path)
    if not root.is_dir():
        cause = "is a file, not a folder" if root.exists() else "does not exist"
        raise LayoutError(f"{root} {cause}; give the folder that holds the images.")
    if layout != "auto" and layout not in LAYOUTS:
        raise LayoutError(f"There is no layout {layout!r}; use auto or one of {one_and(LAYOUTS)}.")
    _refuse_own(root)
    listing = Listing(root, listed(root))
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
        raise LayoutError(f"{root} could be {enumerated(readings, 'or')}; say which with --layout.")
    ((name, reading),) = readings.items()
    chosen = "as asked" if layout != "auto" else "the only layout that fits"
    labelled = (replace(each, defect=readable(each.defect)) for each in reading.samples)
    samples = tuple(sorted(labelled, key=lambda each: natural(each.name)))
    masks, left_out = _account(listing, reading)
    ambiguous = tuple((mask, tuple(images)) for mask, images in sorted(reading.ambiguous.items()))
    return Dataset(root, name, samples, f"Read as {name} ({chosen}): {reading.what}.", masks, left_out, ambiguous)


def _refuse_own(root: Path) -> None:
    """A run, bundle or verdicts, given as the data; folders of images that blemish wrote have only the mark."""
    names = {entry.name for entry in root.iterdir()} - {MARK}
    if is_own(root, names if "metrics.json" in names else names - {"bundle"}):
        raise LayoutError(f"{root} is what blemish wrote about images, not a folder of them; give the images' folder.")


def _account(listing: Listing, reading: Reading) -> tuple[int, tuple[LeftOut, ...]]:
    """The number of masks that are used, and everything else that is no sample, in natural order."""
    names = {each.name for each in reading.samples}
    used = {each.mask.relative_to(listing.root).as_posix() for each in reading.samples if each.mask}
    masks, left = 0, list(listing.tree.left_out)
    for name in listing.tree.images:
        if name in names:
            continue
        if name in used or (name.rpartition("/")[0] in used and name not in reading.left):
            masks += 1
            continue
        in_masks = any(names_masks(part) for part in name.split("/")[:-1])
        left.append(LeftOut(name, reading.left.get(name, "mask-unused" if in_masks else "not-in-layout")))
    return masks, tuple(sorted(left, key=lambda each: natural(each.name)))


def mvtec(folder: Listing) -> Reading:
    """train/good (and train/<defect>), test/<defect>, ground_truth/<defect>/NAME_mask.png of the test split; also the
    several masks NAME/*.png of each image of MVTec LOCO, and the rgb/ and gt/ in each folder of MVTec 3D."""
    return _train_and_test(folder, "good")


def btad(folder: Listing) -> Reading:
    """train/ok, test/ok, test/ko, ground_truth/ko/NAME.png."""
    return _train_and_test(folder, "ok")


def _train_and_test(folder: Listing, good: str) -> Reading:
    if not folder.images(f"train/{good}", DEPTH):
        raise MisfitError(f"no images in train/{good}")
    if not folder.folders_in("test"):
        raise MisfitError("no folders in test")
    learned = sort_folders(folder, folder.folders_in("train"), "train")
    tested = sort_folders(folder, folder.folders_in("test"), "test")
    tops = sort_folders(folder, [name for name in folder.folders if name not in {"train", "test"}])
    train = [Class(f"train/{name}", "good" if name == good else name, "train") for name in learned.classes]
    test = [Class(f"test/{name}", "good" if name.casefold() in GOOD else name, "test") for name in tested.classes]
    # The masks in the root are those of the test split, unless a folder train in them says otherwise.
    masks = [MaskFolder(name, (*test, *train)) for name in tops.masks]
    masks += _mask_folders("train/", learned, train) + _mask_folders("test/", tested, test)
    reading = gather(folder, [*train, *test], masks)
    unread = f"; not read: {one_and(tops.classes)}" if tops.classes else ""
    kinds = one_and(tested.classes) if tested.classes else "nothing"
    reading.what = f"train/{good} and test with {kinds}; {counts(reading.samples, reading.left.values())}{unread}"
    return reading


def _mask_folders(parent: str, found: Sorted, classes: list[Class]) -> list[MaskFolder]:
    """The folders of masks beside the folders of classes."""
    by_name = {each.within: each for each in classes}
    owned = [MaskFolder(parent + name, (by_name[parent + of],)) for name, of in found.owned.items()]
    return [MaskFolder(parent + name, tuple(classes)) for name in found.masks] + owned


def folders(folder: Listing) -> Reading:
    """good (or ok, normal) and one folder per defect type; masks in ground_truth/<type>, masks/<type>, <type>_mask, or
    directly in a folder of masks where a name says whose mask it is; inside the type or beside the image too."""
    good = [name for name in folder.folders if name.casefold() in GOOD]
    if len(good) != 1:
        raise MisfitError(f"{one_and(good)} are all names for good" if good else "no folder good, ok or normal")
    if halves := [name for name in folder.folders if name.casefold() in {"train", "test"}]:
        raise MisfitError(f"{one_and(halves)} beside {good[0]}")
    if not folder.images(good[0], DEPTH):
        raise MisfitError(f"no images in {good[0]}")
    found = sort_folders(folder, folder.folders)
    classes = [Class(name, "good" if name == good[0] else name) for name in found.classes]
    reading = gather(folder, classes, _mask_folders("", found, classes))
    what = f"{good[0]} is taken for the good images"
    defects = [name for name in found.classes if name != good[0]]
    what += f" and {one_and(defects)} for defect types" if defects else ""
    reading.what = f"{what}; {counts(reading.samples, reading.left.values())}"
    return reading


def flat(folder: Listing) -> Reading:
    """Images directly in the folder, without labels."""
    names = folder.images()
    if not names:
        raise MisfitError("no images directly in it")
    if masks := masks_beside(names):
        raise MisfitError(f"{masks[0]} is a mask beside the images: move the masks into a folder of their own")
    what = f"{len(names)} images directly in the folder, none labelled"
    return Reading([sample(folder, name) for name in names], what)


LAYOUTS: dict[str, Callable[[Listing], Reading]] = {
    "mvtec": mvtec,
    "btad": btad,
    "visa": visa,
    "folders": folders,
    "magnetic-tile": magnetic_tile,
    "kolektorsdd2": kolektorsdd2,
    "flat": flat,
}


def _refuse_images_below(folder: Listing) -> None:
    """Images in the folder *and* in its folders: reading the first alone would silently drop the others."""
    deeper = [name for name in folder.folders if folder.images(name, DEPTH)]
    if deeper:
        raise LayoutError(
            f"{folder.root} has images directly in it and in its folders {one_and(deeper)}, none of them named "
            "good; --layout flat reads the first and leaves the others, or name the folder of good images good."
        )


def _no_layout(folder: Listing, missing: dict[str, str]) -> LayoutError:
    """What to say of a folder that fits no layout: often it is one folder too high."""
    products = []
    for name in folder.folders[:100]:
        inside = folder.below(name)
        for layout, reader in LAYOUTS.items():
            if layout in {"flat", "kolektorsdd2"} or layout not in missing:
                continue
            try:
                reader(inside)
            except (MisfitError, LayoutError):
                continue
            products.append(name)
            break
    if len(products) > 1:
        return LayoutError(
            f"{folder.root} holds {len(products)} products ({one_and(products)}), each a data set of its own; "
            f"give one of them, for example {folder.root / products[0]}."
        )
    if products:
        return LayoutError(f"{folder.root} is no data set, but its folder is; give {folder.root / products[0]}.")
    inside_it = [f"{len(folder.images())} images"] if folder.images() else []
    inside_it += [f"folder {name}" for name in folder.folders] or ["no folders"]
    expected = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
    formats = other_formats(folder.tree.left_out)
    convert = f"Images in formats that are not read ({formats}): convert them to PNG. " if formats else ""
    return LayoutError(
        f"{folder.root} fits no layout. Found: {one_and(inside_it)}. Missing for {expected}. {convert}"
        "Put the good images into a folder good, and each defect type into a folder of its own."
    )
