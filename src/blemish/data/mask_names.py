"""Which folders and files hold masks, by their names, and whose mask each one is.

A folder is one of masks where its name says so in any spelling (mask, Masks, GT, ground-truth, labels, NG_mask, ...).
Some of these words could name a part or a defect too (a torn label): there the content decides, and where that does
not, the folder is refused in words. No mask is ever a good or a defective image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from blemish.data.reading import GOOD, LayoutError, Listing, Reading, sample, stem
from blemish.listing import DEPTH
from blemish.types import SplitName

STRONG = frozenset(["mask", "masks", "gt", "gts", "groundtruth", "groundtruths"])
WEAK = frozenset(
    [
        *("label", "labels", "annotation", "annotations", "annotated", "annot", "annots", "seg", "segs", "segm"),
        *("segmentation", "segmentations", "segmented"),
    ]
)
_FILLER = frozenset(
    [
        *("image", "images", "img", "imgs", "png", "bmp", "pixel", "pixels", "binary", "bw", "class", "object", "data"),
        "true",
    ]
)
_IMAGES = frozenset(["rgb", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"])
_DEPTHS = frozenset(["xyz", "depth", "pcd", "pointcloud"])
_BESIDE = re.compile(r"(?i)(.+?)[ _.-]?(?:(?<=[ _.-])(mask|masks|gt|ground_?truth|seg|segmentation|annotation|label))")


@dataclass(frozen=True)
class Class:
    """A folder whose images are all `kind`: "good" or a defect type."""

    within: str
    kind: str
    split: SplitName = ""


@dataclass(frozen=True)
class MaskFolder:
    """A folder of masks of the images of these classes."""

    within: str
    serves: tuple[Class, ...]


@dataclass(frozen=True)
class Sorted:
    """Folders side by side: those of `classes`, those of `masks` of any of them, and those of the masks of one: `owned`
    by the folder's name."""

    classes: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    owned: dict[str, str] = field(default_factory=dict)


def words(name: str) -> list[str]:
    """NGMask, ng-mask and maskNG -> ng and mask, in their order; "ground truth" is one word."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", name)
    joined = re.sub(r"\bground truth(s?)\b", r"groundtruth\1", " ".join(parts).casefold())
    found: list[str] = []
    for word in joined.split():
        glued = re.fullmatch(r"(masks?)(.+)|(.+?)(masks?|groundtruths?)", word)
        alone = word in STRONG | WEAK or glued is None
        found += [word] if alone or glued is None else [part for part in glued.groups() if part]
    return found


def names_masks(name: str) -> str:
    """The mask word in a folder's name where it has no other meaning: "masks", "label"; "" for any other folder."""
    found = words(name)
    said = [word for word in found if word in STRONG] or [word for word in found if word in WEAK]
    return said[0] if said and all(word in STRONG | WEAK | _FILLER for word in found) else ""


def sort_folders(folder: Listing, names: Iterable[str], parent: str = "") -> Sorted:
    """Tells folders of classes from folders of masks. Raises LayoutError where neither name nor content says which."""
    result, unclear = Sorted(), []
    names = [name for name in names if folder.images(_join(parent, name), DEPTH)]
    plain = {"".join(words(name)): name for name in names if not _mentions(name)}
    for name in names:
        rest = "".join(word for word in words(name) if word not in STRONG | WEAK)
        if not _mentions(name):
            result.classes.append(name)
        elif said := names_masks(name):
            if said in WEAK and folder.looks_like_masks(_join(parent, name)) is False:
                unclear.append((name, "is named like masks but holds pictures"))
            result.masks.append(name)
        elif rest in plain:
            result.owned[name] = plain[rest]
        elif (drawn := folder.looks_like_masks(_join(parent, name))) is None:
            unclear.append((name, "could be a defect type or masks"))
        else:
            (result.masks if drawn else result.classes).append(name)
    for name, why in unclear:
        raise LayoutError(
            f"{folder.root / _join(parent, name)} {why}; rename it (masks belong into masks/TYPE), or "
            "move it out of the data."
        )
    _refuse_masks_under_other_names(folder, result.classes, parent)
    return result


def _refuse_masks_under_other_names(folder: Listing, classes: Sequence[str], parent: str) -> None:
    """A defect type that is drawn in few values, with the names of another class's pictures, is that one's masks."""
    # Without the masks inside a class: MVTec 3D has good/gt and hole/gt beside good/rgb and hole/rgb.
    withins = {name: _join(parent, name) for name in classes}
    pictures_of = {name: _class_images(folder, Class(within, name), Reading([]))[0] for name, within in withins.items()}
    stems = {name: {stem(image)[len(withins[name]) :] for image in images} for name, images in pictures_of.items()}
    drawn: dict[str, bool | None] = {}

    def is_drawn(name: str) -> bool | None:
        if name not in drawn:
            drawn[name] = folder.are_drawn(pictures_of[name])
        return drawn[name]

    for name in classes:
        others = [other for other in classes if other != name and stems[name] <= stems[other]]
        if name.casefold() not in GOOD and others and is_drawn(name):
            pictures = [other for other in others if is_drawn(other) is False]
            if pictures:
                raise LayoutError(
                    f"{folder.root / _join(parent, name)} looks like masks of {pictures[-1]}: its images have the same "
                    f"names and few values; move it to masks/{pictures[-1]}, or rename its images if they are a "
                    "defect type."
                )


def _mentions(name: str) -> bool:
    return any(word in STRONG | WEAK for word in words(name))


def gather(folder: Listing, classes: Sequence[Class], masks: Sequence[MaskFolder]) -> Reading:
    """The samples of the classes, each with its mask: NAME_mask.* or NAME.* in a folder of masks, in a folder of masks
    inside the class, or beside the image; or a folder NAME of masks, which are united.

    A mask that fits several images is given to none, because it can belong to one at most.
    """
    reading = Reading([])
    images: dict[Class, list[str]] = {}
    found: list[tuple[str, str, tuple[Class, ...]]] = []  # masks: name, key, the classes that they may belong to
    for each in classes:
        images[each], inside = _class_images(folder, each, reading)
        found += [(name, _key(name, each.within), (each,)) for name in inside]
    for place in masks:
        for name in folder.images(place.within, DEPTH):
            serves, within = _served(name, place)
            found.append((f"{place.within}/{name}", _key(f"{place.within}/{name}", within), serves))
    given: dict[str, list[str]] = {}
    tables: dict[tuple[Class, ...], _Table] = {}
    for name, key, serves in found:
        defective = tuple(each for each in serves if each.kind != "good")
        table = tables.setdefault(defective, _Table({i: c.within for c in defective for i in images[c]}))
        fits, united = table.fits(key)
        if len(fits) > 1:
            reading.left[name], reading.ambiguous[name] = "mask-ambiguous", fits
        elif fits:
            given.setdefault(fits[0], []).append(f"{name.rpartition('/')[0]}/" if united else name)
        else:
            good = _Table({i: c.within for c in serves if c.kind == "good" for i in images[c]})
            reading.left[name] = "mask-of-good" if good.fits(key)[0] else "mask-unused"
    for each in classes:
        for name in images[each]:
            mask = _chosen(given.get(name, []), reading)
            reading.samples.append(sample(folder, name, each.kind, mask, each.split))
    return reading


class _Table:
    """Images by their keys, to find whose mask a mask is."""

    def __init__(self, images: dict[str, str]) -> None:
        self.by: list[dict[str, list[str]]] = [{}, {}, {}]
        for name, within in images.items():
            key = _key(name, within)
            for table, named in zip(self.by, (key, stem(key), stem(key).rpartition("/")[2]), strict=True):
                table.setdefault(named, []).append(name)

    def fits(self, key: str) -> tuple[list[str], bool]:
        """The images that a mask could belong to, and whether by the folder that it is in."""
        whole, exact, base = self.by
        plain = stem(key)
        beside = _BESIDE.fullmatch(plain)
        names = [plain] + ([beside[1]] if beside else [])
        prefixed = re.fullmatch(r"(?i)(.*/)?(?:mask|gt)[ _-]([^/]+)", plain)
        names += [f"{prefixed[1] or ''}{prefixed[2]}"] if prefixed else []
        for table in (whole, exact):
            for name in names:
                if images := table.get(name):
                    return images, False
        if images := exact.get(plain.rpartition("/")[0]):
            return images, True
        # masks/0.png of bad/2024-05-01/0.png
        return next((base[name] for name in names if name in base), []), False


def _chosen(masks: list[str], reading: Reading) -> str:
    """The mask of one image; the others belong to none. NAME_mask.png comes before NAME.png."""
    direct = [mask for mask in masks if not mask.endswith("/")]
    if not direct:
        return masks[0].rstrip("/") if masks else ""
    first = next((mask for mask in direct if stem(mask).casefold().endswith("_mask")), direct[0])
    reading.left.update({mask: "mask-unused" for mask in direct if mask != first})
    return first


def _class_images(folder: Listing, each: Class, reading: Reading) -> tuple[list[str], list[str]]:
    """The images of one class and the masks among them, as names relative to the root."""
    images, masks = [], []
    is_mask = _mask_folders(folder, each)
    for name in folder.images(each.within, DEPTH):
        place = name.rpartition("/")[0]
        parts = place.split("/") if place else []
        if any(is_mask("/".join(parts[: i + 1])) for i in range(len(parts))):
            masks.append(name)
        elif any(_is_depth(folder, each.within, parts[:i], part) for i, part in enumerate(parts)):
            reading.left[f"{each.within}/{name}"] = "depth-map"
        else:
            images.append(name)
    masks += (beside := masks_beside(images))
    skipped = set(beside)
    return (
        [f"{each.within}/{name}" for name in images if name not in skipped],
        [f"{each.within}/{name}" for name in masks],
    )


def masks_beside(images: Sequence[str]) -> list[str]:
    """Those of the images that are masks of others in their folder (NAME_mask.png, NAME_GT.png beside NAME.*), or that
    are named like masks without doubt."""
    stems = {stem(name) for name in images}
    found = []
    for name in images:
        beside = _BESIDE.fullmatch(stem(name))
        if beside and (beside[1] in stems or beside[2].casefold().replace("_", "") in STRONG):
            found.append(name)
    return found


def _mask_folders(folder: Listing, each: Class) -> Callable[[str], bool]:
    """Whether a folder inside a class holds masks, by its name relative to the class."""
    known: dict[str, bool] = {}
    own = "".join(words(each.within.rpartition("/")[2]))

    def is_mask(place: str) -> bool:
        if place not in known:
            name = place.rpartition("/")[2]
            rest = "".join(word for word in words(name) if word not in STRONG | WEAK)
            sure = names_masks(name) not in {"", "label", "labels"} or (_mentions(name) and rest == own)
            known[place] = sure or (_mentions(name) and folder.looks_like_masks(f"{each.within}/{place}") is not False)
        return known[place]

    return is_mask


def _is_depth(folder: Listing, within: str, above: list[str], part: str) -> bool:
    """MVTec 3D has the folders rgb, xyz and gt side by side."""
    return part.casefold() in _DEPTHS and any(
        name.casefold() in _IMAGES for name in folder.folders_in("/".join([within, *above]))
    )


def _served(name: str, place: MaskFolder) -> tuple[tuple[Class, ...], str]:
    """The classes that a mask in a folder of masks may belong to, and the folder that its key is relative to: the
    folder inside it that has a class's name, if there is one. Unless a folder says otherwise, the test split is meant.
    """
    parts = name.split("/")[:-1]
    within, serves = place.within, place.serves
    for split in ("train", "test"):
        if parts and parts[0].casefold() == split and any(each.split for each in serves):
            serves = tuple(each for each in serves if each.split == split)
            within, parts = f"{within}/{parts[0]}", parts[1:]
            break
    else:
        serves = tuple(each for each in serves if each.split != "train") or serves
    if parts:
        same = [each for each in serves if each.within.rpartition("/")[2].casefold() == parts[0].casefold()]
        if parts[0].casefold() in GOOD:
            same = [each for each in serves if each.kind == "good"]
        if same or parts[0].casefold() in GOOD:
            return tuple(same), f"{within}/{parts[0]}"
    return serves, within


def _key(name: str, within: str) -> str:
    """A name relative to `within`, without the folders that only say what is an image and what is a mask."""
    *folders, file = name[len(within) + 1 :].split("/")
    kept = [part for part in folders if part.casefold() not in _IMAGES and not _mentions(part)]
    return "/".join([*kept, file])


def _join(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name
