from pathlib import Path

import pytest

from blemish import BlemishError, Folder


def test_what_is_in_a_folder(product: Path) -> None:
    """40 good images to learn from, 6 good and 6 defective ones to test on."""
    folder = Folder(product)
    assert (len(folder), len(folder.good), len(folder.defective), len(folder.test)) == (52, 40, 6, 12)
    assert {sample.defect for sample in folder.defective} == {"spot"}
    assert not {sample.name for sample in folder.good} & {sample.name for sample in folder.test}
    assert repr(folder) == f"Folder({str(product)!r}: 46 good, 6 spot)"


def test_without_a_test_of_its_own(labelled: Path) -> None:
    folder = Folder(str(labelled))
    assert (len(folder.good), len(folder.defective), folder.test) == (41, 20, [])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BlemishError, match="does not exist; give the folder"):
        Folder(tmp_path / "nothing").samples  # noqa: B018
