"""Folders and patterns: what is found is what `blemish.listing.walk` and Python's glob find, each image once."""

from __future__ import annotations

import glob
import os
from collections import Counter
from pathlib import Path

import pytest

from blemish.cluster import folders
from blemish.cluster.folders import Walk, matching
from blemish.listing import Reason, walk
from blemish.types import BlemishError
from tests.support import touch


def found(root: Path) -> tuple[list[str], Counter[Reason]]:
    """The names below a folder, and what was left out."""
    left_out = Counter[Reason]()
    return [os.path.relpath(path, root) for path, _ in Walk(str(root), left_out).images()], left_out


def globbed(pattern: str) -> list[tuple[str, str]]:
    return list(matching(pattern, Counter()))


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A folder with all that a folder may hold, and beside it what its links lead to."""
    root = tmp_path / "set"
    touch(root, "b10.png", "b2.PNG", "a b.jpg", "#1.png", "100%.png", "q?.png", "[x].png", "two\nlines.png", "é.tif")
    touch(root, os.fsdecode(b"\xff.png"), "x/y/1.png", os.fsdecode(b"caf\xe9/1.png"), ".hidden.png", ".git/1.png")
    touch(root, "@eaDir/1.png", "x/Thumbs.db", "x/SYNOPHOTO_THUMB.jpg", "1.heic", "notes.txt", "none", "1.png.part")
    touch(root, "out/.blemish", "out/overlays/1.png", "run/bundle/card.json", "run/1.png", "x/empty/.keep")
    touch(root, "1/2/3/4/5/6/7/8/in.png", "1/2/3/4/5/6/7/8/9/out.png", ".store/3.png", ".store/4", ".store/deep/5.png")
    touch(tmp_path / "other", "a/1.png", "b/2.png", "f.png", "g")
    for name, target in {
        "a-link": "x",  # listed already
        "up": "..",  # holds the root
        "x/again": "../x",
        "0.png": "b10.png",
        "stored.png": ".store/3.png",  # as git-annex and DVC keep files
        "stored-2.png": ".store/3.png",
        "stored-4.png": ".store/4",
        "deep": ".store/deep",
        "inner": "../other/a",
        "outer": "../other",
        "outer-2": "../other",
        "f.png": "../other/f.png",
        "z/f.png": "../../other/f.png",
        "gone.png": "nowhere.png",
        "self.png": "self.png",
        "self": "self",
        ".link.png": "b10.png",
        "own": "out",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target)
    return root


def test_a_folder_with_everything_in_it_is_listed_as_walk_does(everything: Path) -> None:
    names, left_out = found(everything)
    tree = walk(everything)
    assert len(names) == len(set(names)) > 20
    # A link to a file may be found before the folder that holds the file: then its name stands for both.
    places = Counter(os.path.realpath(everything / name) for name in names)
    assert places == Counter(os.path.realpath(everything / name) for name in tree.images)
    assert set(names) ^ set(tree.images) == {"f.png", "outer/f.png"}
    assert dict(left_out) == dict(Counter(left.reason for left in tree.left_out))


def test_real_files_are_in_natural_order_folder_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b10.png", "b2.png", "B1.png", "f10/1.png", "f9/2.png", "f9/z/1.png")
    assert found(tmp_path)[0] == ["B1.png", "b2.png", "b10.png", "f9/2.png", "f9/z/1.png", "f10/1.png"]
    pairs = Walk(str(tmp_path), Counter()).images()
    assert [source for _, source in pairs] == ["", "", "", "f9", "f9", "f10"]


def test_of_very_many_entries_all_are_found_though_not_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SORTED", 5)
    touch(tmp_path, *(f"{number}.png" for number in range(12)))
    assert sorted(found(tmp_path)[0]) == sorted(walk(tmp_path).images)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that may not be listed")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "closed/2.png")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(BlemishError, match=r"closed: cannot be listed \(Permission denied\); check it\.$"):
        found(tmp_path)
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.png", "*", "line-?/*.png", "line-[12]/*", "*/*/*.png", "**/*.png", "line-1/**/1.png", "line-*/**/*.png"),
        *("[2024] left/*.png", "[2024] left/d/[a-b].png", "**/[2024] left/*.png", "*/**", "line-1/../line-2/*.png"),
    ],
)
def test_patterns_match_what_pythons_glob_matches(tmp_path: Path, pattern: str) -> None:
    names = (
        "0.png",
        "line-1/1.png",
        "line-1/10.png",
        "line-1/2.png",
        "line-2/1.png",
        "line-3/d/1.png",
        "line-1/a/1.png",
    )
    touch(tmp_path, *names, "[2024] left/1.png", "[2024] left/d/a.png", "line-1/.hidden.png", "line-1/note.txt")
    literal = pattern.replace("[2024]", "[[]2024]")  # a folder that is there is meant as it is written
    expected = set[Path]()
    for name in glob.glob(str(tmp_path / literal), recursive=True):  # noqa: PTH207
        path = Path(os.path.abspath(name))  # noqa: PTH100
        expected |= {path / inner for inner in walk(path).images} if path.is_dir() else {path}
    paths = [Path(path) for path, _ in globbed(str(tmp_path / pattern))]
    assert len(paths) == len(set(paths))
    assert set(paths) == {path for path in expected if path.suffix == ".png"}


def test_a_pattern_gives_the_first_folder_below_what_is_fixed(tmp_path: Path) -> None:
    touch(tmp_path, "day/left/1.png", "day/right/b/2.png", "day/3.png")
    assert dict(globbed(f"{tmp_path}/day/**")) == {
        f"{tmp_path}/day/3.png": "",
        f"{tmp_path}/day/left/1.png": "left",
        f"{tmp_path}/day/right/b/2.png": "right",
    }
    assert [source for _, source in globbed(f"{tmp_path}/*/*/1.png")] == ["day"]
    assert dict(globbed(f"{tmp_path}/day/*")) == dict(globbed(f"{tmp_path}/day/**"))


def test_loops_of_links_do_not_keep_a_pattern_for_ever(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    for name in ("one", "two", "three"):  # Python's glob would try 3 ** 40 paths
        (tmp_path / "a" / name).symlink_to(tmp_path)
    left_out = Counter[Reason]()
    assert [path for path, _ in matching(f"{tmp_path}/**/*.png", left_out)] == [f"{tmp_path}/a/1.png"]
    assert left_out == {"linked": 3}


@pytest.mark.parametrize(
    ("pattern", "expected", "left_out"),
    [
        ("*", ["elsewhere/2.png", "line1/1.png", "line1/sub/3.png"], {"linked": 3, "no-image": 1}),
        ("*/*.png", ["elsewhere/2.png", "line1/1.png"], {"linked": 3}),
        ("l*", ["line1/1.png", "line1/sub/3.png"], {"linked": 1}),
        ("latest/*", ["latest/1.png", "latest/sub/3.png"], {}),  # named by hand
        ("[lr]*[!1]", ["latest/1.png", "latest/sub/3.png"], {"linked": 1}),
        ("*/*", ["elsewhere/2.png", "line1/1.png", "line1/sub/3.png"], {"linked": 3}),
    ],
)
def test_what_two_matches_lead_to_is_found_once(
    tmp_path: Path, pattern: str, expected: list[str], left_out: dict[Reason, int]
) -> None:
    root = tmp_path / "imgs"
    touch(tmp_path, "imgs/line1/1.png", "imgs/line1/sub/3.png", "imgs/none.txt", "other/2.png")
    for name, target in {
        "again": "../other",  # the same as elsewhere, but not in order
        "elsewhere": "../other",
        "latest": "line1",
        "right": "latest",
    }.items():
        (root / name).symlink_to(target)
    counted = Counter[Reason]()
    names = sorted(os.path.relpath(path, root) for path, _ in matching(f"{root}/{pattern}", counted))
    assert [name.replace("again", "elsewhere") for name in names] == expected
    assert dict(counted) == left_out


def test_a_link_up_in_what_matches_finds_nothing_again(tmp_path: Path) -> None:
    touch(tmp_path, "d/1.png", "d/e/2.png")
    (tmp_path / "d/e/up").symlink_to("..")
    left_out = Counter[Reason]()
    found = [path for path, _ in matching(f"{tmp_path}/*/*", left_out)]
    assert sorted(found) == [f"{tmp_path}/d/1.png", f"{tmp_path}/d/e/2.png"]
    assert set(left_out) == {"linked"}


def test_links_to_files_that_match_too_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "d/c.png", "../store/1.png")
    for name, target in {"a.png": "b.png", "e.png": "d/c.png", "f.png": "gone.png", "g.png": "../store/1.png"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "h.png").symlink_to("../store/1.png")
    left_out = Counter[Reason]()
    found = [os.path.relpath(path, tmp_path) for path, _ in matching(f"{tmp_path}/*", left_out)]
    assert found == ["b.png", "d/c.png", "f.png", "g.png"]  # reading f.png says what is wrong
    assert left_out == {"linked": 3}


def test_a_pattern_does_not_lead_through_what_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "run/.blemish", "run/overlays/a/1.png", "@eaDir/x/a/2.png", ".x/y/a/3.png", "d/.y/a/5.png")
    touch(tmp_path, "d/e/a/4.png", "d/out/verdicts.jsonl", "d/out/a/6.png")
    (tmp_path / "link").symlink_to("run")
    left_out = Counter[Reason]()
    assert [path for path, _ in matching(f"{tmp_path}/*/*/*/*", left_out)] == [f"{tmp_path}/d/e/a/4.png"]
    assert left_out == {"own-output": 3, "litter": 1}  # a star stands for no hidden name
    assert [path for path, _ in globbed(f"{tmp_path}/.x/*/*/*")] == [f"{tmp_path}/.x/y/a/3.png"]
    assert [path for path, _ in globbed(f"{tmp_path}/*/.y/*/*")] == [f"{tmp_path}/d/.y/a/5.png"]
    assert not globbed(f"{tmp_path}/r*/*/*")


def test_what_a_pattern_passes_over_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "d/1.png", "d/2.txt", "d/3.heic", "d/run/verdicts.jsonl", "d/@eaDir/1.png", "d/.git/1.png")
    left_out = Counter[Reason]()
    assert [path for path, _ in matching(f"{tmp_path}/d/*", left_out)] == [f"{tmp_path}/d/1.png"]
    assert left_out == {"no-image": 1, "other-format": 1, "own-output": 1, "litter": 1}
    left_out.clear()
    list(matching(f"{tmp_path}/**/*.png", left_out))
    assert left_out == {"own-output": 1, "litter": 1, "hidden": 1}  # no .txt: it was not asked for


@pytest.mark.parametrize("pattern", ["*.tif", "lost/*.png", "**/*.tif", "*/x/*"])
def test_a_pattern_without_a_match_is_refused(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path, "a/1.png")
    with pytest.raises(BlemishError, match=r"nothing matches; check|lost: cannot be listed \(No such file"):
        globbed(str(tmp_path / pattern))
