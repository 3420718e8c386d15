"""Names of what is written about an image."""

import os

import pytest

from blemish.inference.naming import LONGEST, WHOLE, output_name


@pytest.mark.parametrize(
    "name", ["a.png", "deep/a.png", "a b.PNG", "零件.png", "a.png-0123abcd", "x" * 236 + ".png", "-"]
)
def test_a_usual_name_stays(name: str) -> None:
    assert output_name(name) == name


LONG = ["x" * 250 + ".png", "é" * 123 + ".png", "零" * 83 + ".png", os.fsdecode(b"\xe4" * 250) + ".png"]


@pytest.mark.parametrize("name", [*LONG, f"deep/{LONG[0]}", f"{'d' * 255}/a.png", "/".join(["f" * 200] * 8) + "/a.png"])
def test_a_long_one_is_cut_by_bytes_and_stays_its_own(name: str) -> None:
    short = output_name(name)
    assert short == output_name(name)
    assert all(len(os.fsencode(part)) <= LONGEST for part in short.split("/"))
    assert len(os.fsencode(short)) <= WHOLE
    assert short != output_name(name.replace(".png", ".jpg"))
    assert output_name(f"{name}-0123abcd") != short  # a second image of this name
    assert output_name(short) == short  # it is a usual name itself


def test_the_characters_of_a_name_that_is_cut_stay_whole() -> None:
    assert output_name("é" * 123 + ".png").startswith("é" * 80 + "~")


def test_a_folder_never_has_the_name_of_an_overlay() -> None:
    files = ["a.png", "a.png.jpg/b.png", "a.png.JPG/b.png", "a.png/b.png", "a.png.jpg/a.png.jpg"]
    written = {f"{output_name(name)}.jpg" for name in files}
    folders = {path.rpartition("/")[0] for path in written}
    assert len(written) == len(files)
    assert not written & folders
    assert not {path.lower() for path in written} & {folder.lower() for folder in folders}
