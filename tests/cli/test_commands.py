from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from blemish.cli.app import app
from blemish.cli.commands import LATE, ORDER, Commands
from tests.support import refused


def test_every_command_is_in_the_order_of_help() -> None:
    early = {info.callback.__name__ for info in app.registered_commands if info.callback}
    early |= {group.name for group in app.registered_groups if group.name}
    assert early | set(LATE) == set(ORDER)
    assert not early & set(LATE)


def test_the_options_of_train_are_made_only_for_train() -> None:
    """They ask every installed package for detectors."""
    code = (
        "import sys; from blemish.cli.app import main\ntry:\n main()\nexcept SystemExit: pass\n"
        "print(*[m for m in sys.modules if m.startswith(('blemish.training', 'blemish.detectors'))])"
    )
    command = [sys.executable, "-c", code, "inspect", "--help"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == ""


def test_a_mistyped_command_is_guessed_among_all() -> None:
    assert "Did you mean 'train'" in refused("trian")


@pytest.mark.parametrize("cause", [EOFError("end"), BrokenPipeError(32, "Broken pipe")])
def test_typer_does_not_end_with_the_code_of_an_anomaly(cause: Exception) -> None:
    made = typer.Typer(cls=Commands, add_completion=False)

    @made.callback()
    def options() -> None:
        pass

    @made.command()
    def data() -> None:
        raise cause

    with pytest.raises(RuntimeError, match=type(cause).__name__):
        made(["data"], standalone_mode=False)
