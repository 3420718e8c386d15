"""The images below a folder, or that match a pattern, one at a time, however many there are.

They are those of `blemish.listing.walk`, by its rules, each once. What is held: the names of the folders beside those
on the way to the one that is read, one folder's entries as long as they are fewer than `SORTED`, a number for each
link to a file and image that a pattern finds behind a link, and the name of each folder that a link led to or a pattern
matches.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from blemish.listing import DEPTH, Reason, is_hidden, is_litter, is_own_folder, natural, no_image, passed_over
from blemish.types import BlemishError

SORTED = 100_000  # entries of a folder that are sorted in memory
T = TypeVar("T")
Found = tuple[str, str]  # an image's path, and the first folder below the root that it is in ("" = in none)


def in_order(entries: Iterable[T], name: Callable[[T], str]) -> Iterator[T]:
    """In natural order, where they are few enough."""
    rest = iter(entries)
    first = list(islice(rest, SORTED))
    return chain(sorted(first, key=lambda one: natural(name(one))) if len(first) < SORTED else first, rest)


def entries_of(folder: str) -> Iterator[os.DirEntry[str]]:
    """Raises `BlemishError` where it cannot be listed."""
    try:
        with os.scandir(folder) as scanned:
            yield from in_order(scanned, lambda one: one.name)
    except OSError as cause:
        raise BlemishError(f"{folder}: cannot be listed ({cause.strerror}); check it.") from None


class _Folder(NamedTuple):
    path: str  # by which it was reached
    place: str  # where it is: the path without links
    source: str
    levels: int  # that may be searched below it


class Walk:
    """A search below one folder; `left_out` counts entries, a folder as one. With `wanted`, only files for whose path
    below the root it is true are looked at."""

    def __init__(self, root: str, left_out: Counter[Reason], wanted: Callable[[str], bool] | None = None) -> None:
        self.root, self.left_out, self.wanted = root, left_out, wanted
        self.tops: dict[str, int] = {}  # the root and where links led: place -> levels that are searched below it
        self.links = deque[_Folder]()  # to folders; followed when all that is not behind a link has been found
        self.asked = dict[str, bool]()  # what `is_searched` said of the last folder, until a link is followed
        self.targets = set[int]()  # of links to files, as their hashes: ten million strings would fill the memory

    def images(self) -> Iterator[Found]:
        """Raises `BlemishError` where a folder cannot be listed."""
        yield from self.below(self.root, os.path.realpath(self.root), "")
        yield from self.behind_links()

    def below(self, path: str, place: str, source: str) -> Iterator[Found]:
        """Those below a folder that are not behind a link to a folder."""
        yield from self._search(_Folder(path, place, source, DEPTH))

    def behind_links(self) -> Iterator[Found]:
        """The rest. It comes last, so that what is really there has its own name."""
        while self.links:
            if folder := self._behind(self.links.popleft()):
                yield from self._search(folder)

    def _search(self, top: _Folder) -> Iterator[Found]:
        self.tops[top.place] = top.levels
        self.asked.clear()
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            inside: list[_Folder] = []
            for entry in entries_of(folder.path):
                yield from self._entry(entry, folder, inside)
            waiting.extend(reversed(inside))

    def _entry(self, entry: os.DirEntry[str], folder: _Folder, inside: list[_Folder]) -> Iterator[Found]:
        """An entry, if it is an image; a folder to search is added to `inside`."""
        place = f"{folder.place.rstrip(os.sep)}{os.sep}{entry.name}"
        source, link = folder.source, entry.is_symlink()
        if Path(entry.path).is_dir() if link else entry.is_dir():
            found = _Folder(entry.path, place, source or entry.name, folder.levels - 1)
            if reason := passed_over(entry.name) or (None if link else self._closed(found)):
                self.left_out[reason] += 1
            elif link:
                self.links.append(found)
            else:
                inside.append(found)
            return
        if self.wanted and not self.wanted(entry.path[len(self.root.rstrip(os.sep)) + 1 :]):
            return
        reason = no_image(entry.name)
        if reason is None and self.is_linked(place, link=link):
            reason = "linked"
        if reason:
            self.left_out[reason] += 1
        else:
            yield entry.path, source

    def _closed(self, folder: _Folder) -> Reason | None:
        """Why a folder is not searched."""
        if folder.place in self.tops:  # reached by a link to a folder that holds this one
            return "linked"
        if folder.levels < 0:
            return "too-deep"
        return "own-output" if is_own_folder(folder.place) else None

    def _behind(self, link: _Folder) -> _Folder | None:
        """The folder that a link leads to, unless that is searched anyway or holds the root."""
        found = link._replace(place=os.path.realpath(link.path))
        up = _below(os.path.realpath(self.root), found.place)
        reason = "linked" if up or self.is_searched(found.place) else self._closed(found)
        if reason:
            self.left_out[reason] += 1
            return None
        return found

    def is_linked(self, place: str, *, link: bool) -> bool:
        """Whether the file at `place` is found under another path too, by its own or by an earlier link."""
        if not link:
            return bool(self.targets) and hash(place) in self.targets
        place = os.path.realpath(place)
        if not Path(place).exists():
            return False  # reading it says what is wrong
        folder, name = os.path.split(place)
        if hash(place) in self.targets or (no_image(name) is None and self.is_searched(folder)):
            return True
        self.targets.add(hash(place))
        return False

    def is_searched(self, place: str) -> bool:
        """Whether a folder is, or is still to be, searched by its own path."""
        if place not in self.asked:  # links beside each other lead to the same folder, more often than not
            self.asked = {place: self._search_reaches(place)}
        return self.asked[place]

    def _search_reaches(self, place: str) -> bool:
        here, steps = place, 0
        while here not in self.tops:
            above, name = os.path.split(here)
            if above == here or passed_over(name) or is_own_folder(here):
                return False
            here, steps = above, steps + 1
        return steps <= self.tops[here]


def matching(pattern: str, left_out: Counter[Reason]) -> Iterator[Found]:
    """The images that match a pattern, and those in folders that do. `**` is any number of folders. A name that is
    there as it is written is that, brackets and all. The first folder is that below the one before the first wildcard.

    Raises `BlemishError` where nothing matches, and where a folder cannot be listed.
    """
    start, *parts = Path(os.path.abspath(pattern)).parts  # noqa: PTH100  links keep their names
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(os.path.join(start, parts[0]))):  # noqa: PTH118
        start = os.path.join(start, parts.pop(0))  # noqa: PTH118
    if "**" in parts:
        wanted = Counter[bool]()

        def is_wanted(name: str) -> bool:
            wanted[fits := _fits(Path(name).parts, tuple(parts))] += 1
            return fits

        yield from Walk(start, left_out, is_wanted).images()
        matched = wanted[True] > 0
    else:
        search = _Matches(start, parts, left_out)
        yield from search.images()
        matched = search.matched
    if not matched:
        raise BlemishError(f"{pattern}: nothing matches; check the pattern, and quote it.")


class _Matches:
    """A search for what matches a pattern without `**`: `parts`, one for each level below the folder `start`."""

    def __init__(self, start: str, parts: list[str], left_out: Counter[Reason]) -> None:
        self.start, self.parts, self.left_out = start, parts, left_out
        self.place = os.path.realpath(start)
        self.walk = Walk(start, left_out)  # through all folders that match, so that each image is found once
        self.links = deque[tuple[str, int]]()  # to folders on the way to a match, and the level of what is in them
        self.behind = set[tuple[str, int]]()  # the places of folders that links led to, with their levels
        self.images_behind = set[int]()  # those found behind links, as the hashes of their places
        self.matched = False  # whether anything did

    def images(self) -> Iterator[Found]:
        if self.parts:
            yield from self._inside(self.start, self.place, 0)
        else:
            yield from self._found(self.start, self.place, link=False)
        while self.links:
            path, level = self.links.popleft()
            place = os.path.realpath(path)
            if is_own_folder(place):
                self.left_out["own-output"] += 1
            elif self._is_matched(place, level):
                self.left_out["linked"] += 1
            else:
                yield from self._once(self._inside(path, place, level, linked=True))
        yield from self._once(self.walk.behind_links())

    def _once(self, behind_links: Iterator[Found]) -> Iterator[Found]:
        """Links may lead up to what matches by its own path, and into each other."""
        for path, source in behind_links:
            place = os.path.realpath(path)
            if hash(place) in self.images_behind or self._is_matched(place, len(self.parts)):
                self.left_out["linked"] += 1
            else:
                self.images_behind.add(hash(place))
                yield path, source

    def _inside(self, folder: str, place: str, level: int, *, linked: bool = False) -> Iterator[Found]:
        """What matches in a folder, and in those in it that are no links; `linked`: it is itself behind one."""
        if linked:
            if (place, level) in self.behind or self.walk.is_searched(place):
                self.left_out["linked"] += 1
                return
            self.behind.add((place, level))
        last = level == len(self.parts) - 1
        for entry in entries_of(folder):
            if not _matches(entry.name, self.parts[level]):
                continue
            here, link = f"{place.rstrip(os.sep)}{os.sep}{entry.name}", entry.is_symlink()
            if last:
                yield from self._found(entry.path, here, link=link, linked=linked)
            elif Path(entry.path).is_dir():
                if is_litter(entry.name) or (not link and is_own_folder(here)):
                    self.matched = True
                    self.left_out["litter" if is_litter(entry.name) else "own-output"] += 1
                elif link:
                    self.links.append((entry.path, level + 1))
                else:
                    yield from self._inside(entry.path, here, level + 1, linked=linked)

    def _found(self, path: str, place: str, *, link: bool, linked: bool = False) -> Iterator[Found]:
        """What a path that matches stands for: an image, or all in a folder."""
        self.matched = True
        name = os.path.basename(path)  # noqa: PTH119
        source = Path(os.path.relpath(path, self.start)).parts[0] if path != self.start else ""
        if Path(path).is_dir():
            if reason := passed_over(name) or ("own-output" if is_own_folder(path) else None):
                self.left_out[reason] += 1
            elif link or linked:
                self.walk.links.append(_Folder(path, place, source, DEPTH))
            else:
                yield from self.walk.below(path, place, source)
        elif reason := no_image(name) or ("linked" if self._is_linked(place, link=link) else None):
            self.left_out[reason] += 1
        else:
            yield path, "" if os.path.dirname(path) == self.start else source  # noqa: PTH120

    def _is_linked(self, place: str, *, link: bool) -> bool:
        """Whether a file that matches is found under another path too."""
        if link:
            real = os.path.realpath(place)
            if no_image(Path(real).name) is None and self._is_matched(real, len(self.parts)) and Path(real).exists():
                return True
        return self.walk.is_linked(place, link=link)

    def _is_matched(self, place: str, level: int) -> bool:
        """Whether the pattern's first parts, so many, match a place by its own path."""
        if not _below(place, self.place):
            return False
        names = Path(os.path.relpath(place, self.place)).parts
        return len(names) == level and all(_matches(*pair) for pair in zip(names, self.parts, strict=False))


def _matches(name: str, part: str) -> bool:
    """Whether a name matches a part of a pattern; hidden ones only one that begins with a dot too."""
    return _like(name, part) and (is_hidden(part) or not is_hidden(name))


def _fits(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether a path matches a pattern with `**`, both in pieces.

    >>> [_fits(tuple(name.split("/")), ("**", "*.png")) for name in ("1.png", "a/b/1.png", "a/1.jpg")]
    [True, True, False]
    >>> _fits(("a", "b", "1.png"), ("a", "**")), _fits(("b", "1.png"), ("a", "**"))
    (True, False)
    """
    if not parts:
        return not names
    if parts[0] == "**":
        return (
            bool(names)
            if not parts[1:]
            else any(_fits(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
        )
    return bool(names) and _like(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _like(name: str, part: str) -> bool:
    return name == part or fnmatch.fnmatch(name, part)


def _below(path: str, folder: str) -> bool:
    """Whether a path is a folder or in it, by their names."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
