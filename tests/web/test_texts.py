"""What people write, as it is kept."""

from __future__ import annotations

import pytest

from blemish.web.texts import plain


@pytest.mark.parametrize(
    ("written", "kept"),
    [("a\0b", "a b"), ("a\nb", "a\nb"), ("é 電", "é 電"), ("\x1b[31m", " [31m"), ("\u202eabc", " abc"), ("", "")],
)
def test_what_databases_cannot_take_becomes_a_space(written: str, kept: str) -> None:
    assert plain(written) == kept
