"""Who is there, and what they may do."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from blemish.types import BlemishError

Role = Literal["inspector", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("inspector", "reviewer", "admin")  # each may do what those before it may


class ForbiddenError(BlemishError):
    """The visitor's role does not allow this."""


@dataclass(frozen=True)
class Visitor:
    """Who sends a request. `csrf` stands in every form, and in the header X-CSRF-Token of what a script sends."""

    name: str
    role: Role
    csrf: str = ""

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


def visitor(request: Request) -> Visitor:  # noqa: ARG001
    return Visitor(getpass.getuser(), "admin")


def _least(role: Role) -> Callable[[Visitor], Visitor]:
    def check(who: Annotated[Visitor, Depends(visitor)]) -> Visitor:
        if not who.may(role):
            raise ForbiddenError(f"This takes the role {role}, and {who.name} is {who.role}; ask an admin.")
        return who

    return check


Inspecting = Annotated[Visitor, Depends(_least("inspector"))]
Reviewing = Annotated[Visitor, Depends(_least("reviewer"))]
Administering = Annotated[Visitor, Depends(_least("admin"))]
