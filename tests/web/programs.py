"""What tests do where a program is not on this machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

CI = "BLEMISH_CI"  # set by .ci/run where every program could have been installed


def absent(sentence: str) -> NoReturn:
    """Skips the test with the sentence; fails it in the continuous integration, which must not skip."""
    if os.environ.get(CI):
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)
