"""Which files below a folder are images to look at, and why each of the others is not. Only names are read.

Every entry that is not a folder is either an image or left out for one of `REASONS`, so that nothing is dropped without
a word. What is left out: hidden files and folders; the litter of systems and file servers (thumbnails, recycle bins),
which would count as good parts; what blemish itself wrote; links to what is listed already; endings of other formats.
Hard links are not links here: they are read, and the audit groups them as copies of one image.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from blemish.ownership import MARK

SUFFIXES = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif"),
    ]
)
# Images in formats that are not read: worth a warning, because somebody may take them for read.
OTHER_FORMATS = frozenset(
    [
        *(".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs", ".jxl", ".jxr", ".hdp", ".wdp", ".bpg"),
        *(".flif", ".jp2", ".j2c", ".j2k", ".jpc", ".jpf", ".jpm", ".jpx", ".jls", ".jng", ".mng", ".jps", ".qoi"),
        *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".srw", ".raf", ".orf"),
        *(".rw2", ".rwl", ".pef", ".x3f", ".3fr", ".fff", ".iiq", ".kdc", ".mrw", ".erf", ".bayer", ".hdr", ".exr"),
        *(".pfm", ".pcd", ".pgm", ".ppm", ".pbm", ".pnm", ".pam", ".pcx", ".tga", ".ras", ".sgi", ".rgb", ".rgba"),
        *(".xbm", ".xpm", ".wbmp", ".dcm", ".dicom", ".nii", ".fit", ".fits", ".fts", ".svs", ".btf", ".im", ".img"),
        *(".npy", ".npz", ".svg", ".svgz", ".eps", ".emf", ".wmf", ".pdf", ".djvu", ".psd", ".psb", ".xcf", ".dds"),
        *(".ico", ".icns", ".cur", ".avi", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"),
    ]
)
DEPTH = 8  # levels of folders that are searched

Reason = Literal[
    "hidden", "litter", "own-output", "linked", "too-deep", "other-format", "no-image",
    "mask-of-good", "mask-unused", "mask-ambiguous", "depth-map", "not-in-layout",
]  # fmt: skip
REASONS: dict[Reason, str] = {
    "hidden": "hidden (their names begin with a dot)",
    "litter": "litter of a system or file server (thumbnails, recycle bins)",
    "own-output": "written by blemish itself",
    "linked": "links to what is listed already",
    "too-deep": f"more than {DEPTH} folders down",
    "other-format": "in formats that are not read",
    "no-image": "no images, by their endings",
    "mask-of-good": "masks of good images",
    "mask-unused": "masks that belong to no image",
    "mask-ambiguous": "masks that could belong to several images",
    "depth-map": "depth maps beside their images",
    "not-in-layout": "images that the layout does not name",
}

_LITTER = frozenset(
    [
        *("#recycle", "#snapshot", "~snapshot", "recycler", "network trash folder", "temporary items"),
        *("system volume information", "lost+found", "found.000", "__macosx", "_macosx", "_vti_cnf", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "ipod photo cache", "captureone"),
        *("thumbs", "thumbnail", "thumbnails", "_thumbs", "_thumbnails", "__thumbs", "_picasaoriginals"),
    ]
)
_LITTER_ENDS = (".lrdata", ".lrcat-data", ".photoslibrary", ".photolibrary", ".aplibrary", ".cocatalogdb")
_LITTER_STARTS = ("~$", ":2e", "synophoto_", "~syncthing~")
_OWN = ({MARK}, {"verdicts.jsonl"}, {"card.json", "model.onnx"}, {"sweep.csv", "sweep.json"})


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is a system's, file server's or photo program's, in any case.

    Names that begin with @ or $ and have no image's ending are those of file servers and Windows (@eaDir, @Recycle,
    $RECYCLE.BIN).
    """
    name = name.casefold()
    if name in _LITTER or name.startswith(_LITTER_STARTS) or name.endswith(_LITTER_ENDS):
        return True
    return name.startswith(("@", "$")) and not has_suffix(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden: it begins with a dot."""
    return name.startswith(".")


def has_suffix(name: str) -> bool:
    """Whether a file's name ends as that of an image that is read."""
    return ending(name) in SUFFIXES


def ending(name: str) -> str:
    """The ending of a file's name in lower case with its dot; "" where it has none."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def is_own(folder: Path | str, names: Set[str]) -> bool:
    """Whether blemish wrote this folder, which holds these `names`: it has the mark, or it is a run, a sweep, a bundle
    or the verdicts of a version that set none."""
    if any(written <= names for written in _OWN):
        return True
    return "bundle" in names and Path(folder, "bundle", "card.json").is_file()


def is_own_folder(folder: Path | str) -> bool:
    """`is_own` of a folder that has not been listed: only the few names that matter are looked for."""
    return is_own(folder, {name for name in frozenset[str]().union(*_OWN, {"bundle"}) if Path(folder, name).exists()})


def passed_over(name: str) -> Reason | None:
    """Why a file or folder of this name is not looked at."""
    if is_hidden(name):
        return "hidden"
    return "litter" if is_litter(name) else None


def no_image(name: str) -> Reason | None:
    """Why a file of this name is left out; None for an image."""
    if reason := passed_over(name):
        return reason
    if has_suffix(name):
        return None
    return "other-format" if ending(name) in OTHER_FORMATS else "no-image"


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: runs of digits count as numbers, and case matters only between names that are equal otherwise."""
    runs = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(run), "") if run[0] in "0123456789" else (1, 0, run) for run in runs], name


@dataclass(frozen=True)
class LeftOut:
    """A file that is not read, or a folder with the number of `files` in it."""

    name: str
    reason: Reason
    files: int = 1


@dataclass(frozen=True)
class Tree:
    """What is below a folder, as names relative to it with forward slashes, in natural order.

    `folders` are those that were searched, without the folder itself. `left_out` has every other file.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def other_formats(left_out: Iterable[LeftOut]) -> str:
    """Which images in formats that are not read are among these files, in words: "20 .heic, 1 .pgm"; "" for none."""
    endings = Counter(ending(left.name) for left in left_out if left.reason == "other-format")
    return ", ".join(f"{count} {name}" for name, count in endings.most_common())


def walk(root: Path | str, depth: int = DEPTH, *, count: bool = True) -> Tree:
    """The images in `root` and in its folders, at most `depth` levels down, and everything else that is there.

    What is really there comes first, so that a link never takes the place of the file that it leads to. A link to a
    folder elsewhere is followed, once. A link that leads to nothing is listed: reading it says what is wrong.
    Without `count`, the files in folders that are left out are not counted, which saves listing them.
    Raises OSError where a folder cannot be listed, litter and hidden folders excepted.
    """
    return _Walk(os.path.realpath(root), count).tree(depth)


class _Walk:
    """One walk through a folder, whose real path is `root`."""

    def __init__(self, root: str, count: bool) -> None:
        self.root, self.count = root, count
        self.found = Tree()
        self.folders: deque[tuple[str, str, int]] = deque()  # to search: name, real path, levels below it
        self.links: deque[tuple[str, int]] = deque()  # to follow when all that is really there is known
        self.file_links: list[tuple[str, str]] = []  # name and target, to list when all folders are known
        self.searched: set[str] = set()  # real paths of folders
        self.linked: set[str] = set()  # real paths of files elsewhere that a link lists

    def tree(self, depth: int) -> Tree:
        self.folders.append(("", self.root, depth))
        while self.folders or self.links:
            if self.folders:
                self._search(*self.folders.popleft())
            else:
                self._follow(*self.links.popleft())
        for name, target in self.file_links:
            self._link_to_file(name, target)
        found = self.found
        return Tree(
            sorted(found.images, key=natural),
            sorted(found.folders, key=natural),
            sorted(found.left_out, key=lambda left: natural(left.name)),
        )

    def _search(self, name: str, place: str, levels: int) -> None:
        """Lists one folder, and queues its folders and links."""
        with os.scandir(place) as scanned:
            entries = list(scanned)
        if name and is_own(place, {entry.name for entry in entries}):
            self._leave(name, "own-output", place)
            return
        self.searched.add(place)
        self.found.folders.extend([name] if name else [])
        links = []
        for entry in entries:
            inner = f"{name}/{entry.name}" if name else entry.name
            link = entry.is_symlink()
            folder = not link and entry.is_dir()
            if reason := passed_over(entry.name):
                self._leave(inner, reason, entry.path if folder else "")
            elif link:
                links.append((inner, levels - 1))
            elif folder and entry.path in self.searched:  # reached by a link to a folder that holds this one
                self._leave(inner, "linked")
            elif folder and not levels:
                self._leave(inner, "too-deep", entry.path)
            elif folder:
                self.folders.append((inner, entry.path, levels - 1))
            else:
                self._file(inner)
        self.links.extend(sorted(links, key=lambda link: natural(link[0])))

    def _follow(self, name: str, levels: int) -> None:
        """Follows a link unless it leads to what is listed already, or to a folder that holds the root."""
        target = os.path.realpath(f"{self.root}/{name}")
        if Path(target).is_dir():
            if target in self.searched or Path(self.root).is_relative_to(target):
                self._leave(name, "linked")
            elif levels < 0:
                self._leave(name, "too-deep")
            else:
                self.folders.append((name, target, levels))
        else:
            self.file_links.append((name, target))

    def _link_to_file(self, name: str, target: str) -> None:
        if has_suffix(name) and Path(target).exists() and (target in self.linked or self._is_listed(target)):
            self._leave(name, "linked")
        else:
            self.linked.add(target)
            self._file(name)

    def _is_listed(self, target: str) -> bool:
        """Whether a real file is listed under its own name."""
        folder, name = os.path.split(target)
        return folder in self.searched and no_image(name) is None

    def _file(self, name: str) -> None:
        if reason := no_image(os.path.basename(name)):  # noqa: PTH119  a Path for each would take its time
            self._leave(name, reason)
        else:
            self.found.images.append(name)

    def _leave(self, name: str, reason: Reason, folder: str = "") -> None:
        files = _count(folder) if folder and self.count else 1
        self.found.left_out.append(LeftOut(name, reason, files))


def _count(folder: str) -> int:
    """How many files and links are in a folder and all folders below it; what cannot be listed counts as none."""
    return sum(
        len(files) + sum(Path(place, inner).is_symlink() for inner in inside)
        for place, inside, files in os.walk(folder)
    )
