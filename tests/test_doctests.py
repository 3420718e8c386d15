"""The examples in the docstrings of evaluation/, and of the figures and curves of reporting/, give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from blemish import evaluation

MODULES = [f"blemish.evaluation.{module.name}" for module in pkgutil.iter_modules(evaluation.__path__)]
MODULES += ["blemish.reporting.figures", "blemish.reporting.compare", "blemish.reporting.curves"]
# Nothing in them is small enough for an example that can be worked out by hand.
WITHOUT = {"blemish.evaluation.evaluate_bundle"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert tried > 0 or name in WITHOUT
