"""The command that says who may log in to the page, registered by `cli/app.py`."""

from __future__ import annotations

import sys
from enum import StrEnum
from getpass import getpass
from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.words import say
from blemish.types import BlemishError


class RoleName(StrEnum):
    inspector = "inspector"
    reviewer = "reviewer"
    admin = "admin"


def user(
    name: Annotated[str, typer.Argument(help="Who; without a name, all are listed.")] = "",
    data: Annotated[Path, typer.Option(help="Folder of `blemish serve`.")] = Path("page"),
    database: Annotated[str, typer.Option(help="Its database, where that is not SQLite.")] = "",
    role: Annotated[RoleName | None, typer.Option(help="What they may do; of a new user inspector.")] = None,
    password: Annotated[bool, typer.Option("--password", help="Give a new password.")] = False,
    token: Annotated[bool, typer.Option("--token", help="Print a new token for a program, once.")] = False,
    no_token: Annotated[bool, typer.Option("--no-token", help="Their token does not count any more.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove them; they are logged out at once.")] = False,
) -> None:
    """Add, change or list those who may log in to the page."""
    from blemish.web import users
    from blemish.web.config import ServeConfig
    from blemish.web.opening import opened

    if token and no_token:
        raise BlemishError("--token makes a new token, --no-token ends it; give one of them.")
    config = ServeConfig(data=data, database=database)
    new = not (database or config.folder.database.is_file())
    # A folder is made for a first user alone: another name of it was a slip.
    with opened(config, make=bool(name) and not remove) as there:
        known = {one.name: one for one in users.listed(there)}
        if not name:
            if remove or token or no_token or password or role:
                raise BlemishError("Whose? Give a name.")
            for one in known.values():
                with_ = " and ".join(what for what in ("password", "token") if getattr(one, what))
                say(f"{one.name}: {one.role}, since {one.created[:10]}, logs in with {with_ or 'nothing yet'}")
            if not known:
                say("Nobody may log in yet. Add the first one: blemish user NAME --role admin")
            return
        if remove:
            users.remove(there, name)
            say(f"{name}: removed.")
            return
        if no_token:
            users.drop_token(there, name)
            say(f"{name}: has no token any more.")
            if not (role or password):
                return
        if name not in known:
            # A program needs no password.
            secret = None if token and not password else _asked()
            users.add(there, name, (role or RoleName.inspector).value, secret)
            say(f"{name}: added as {role or RoleName.inspector}.", err=token)
            if new:
                say(f"{data}: was made for a new page; start it with: blemish serve --data {data}", err=True)
        else:
            if role:
                users.set_role(there, name, role.value)
                say(f"{name}: is {role} now.", err=token)
            if password:
                users.set_password(there, name, _asked())
                say(f"{name}: has a new password, and is logged out everywhere.", err=token)
            if not (role or password or token):
                raise BlemishError(f"'{name}' is a user already; change something with --role, --password or --token.")
        if token:
            say(users.new_token(there, name))


def _asked() -> str:
    """The password: typed twice on a terminal, else one line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass("Password: ")
    if getpass("The same again: ") != first:
        raise BlemishError("The password was not typed the same twice; run it again.")
    return first
