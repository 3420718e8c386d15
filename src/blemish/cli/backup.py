"""The commands that save and restore what `blemish serve` keeps, registered by `cli/app.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.verdicts import INCOMPLETE
from blemish.cli.words import say

Url = Annotated[str, typer.Option(help="Its database, where that is not SQLite.")]


def backup(
    data: Annotated[Path, typer.Argument(help="Folder of `blemish serve`, which may be running.")],
    file: Annotated[Path, typer.Argument(help="The .zip to write.")],
    database: Url = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier backup.")] = False,
) -> None:
    """Save verdicts, corrections, users, images and detectors as of one moment."""
    from blemish.cli.console import progress
    from blemish.web.backup import save
    from blemish.web.config import ServeConfig

    saved = save(ServeConfig(data=data, database=database), file, overwrite=overwrite, progress=progress)
    for sentence in saved.problems:
        say(sentence, err=True)
    say(f"{file}: {saved.rows:,} rows and {saved.files:,} files, as of {saved.time}; {saved.head}")
    if saved.problems:
        raise typer.Exit(INCOMPLETE)


def restore(
    file: Annotated[Path, typer.Argument(help="What `blemish backup` wrote.")],
    data: Annotated[Path, typer.Argument(help="A new or empty folder for `blemish serve`.")],
    database: Annotated[str, typer.Option(help="An empty database, instead of SQLite in the folder.")] = "",
) -> None:
    """Restore a backup, also from SQLite to PostgreSQL and back."""
    from blemish.cli.console import progress
    from blemish.web.config import ServeConfig
    from blemish.web.restoring import restore as run

    saved = run(file, ServeConfig(data=data, database=database), progress=progress)
    for sentence in saved.problems:
        say(sentence, err=True)
    say(f"{data}: {saved.rows:,} rows and {saved.files:,} files, as of {saved.time}; {saved.head}")
    if saved.problems:
        raise typer.Exit(INCOMPLETE)
