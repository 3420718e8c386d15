"""`blemish serve`, as far as it is the command line's."""

from __future__ import annotations

import pytest

from blemish.cli.serve import _announced
from blemish.types import silent


@pytest.mark.parametrize(("total", "soon"), [(3, "is done soon"), (1500, "takes about a minute for a thousand small")])
def test_an_import_is_announced(capsys: pytest.CaptureFixture[str], total: int, soon: str) -> None:
    assert list(_announced(silent)(range(3), "importing board", total)) == [0, 1, 2]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"importing board: {total:,} images are read and copied, this once, which {soon}")
    assert said.err.count("\n") == 1
