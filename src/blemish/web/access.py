"""Who sends a request, and what they may do. `guard.py` finds that out before any route is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request

from blemish.types import BlemishError

Role = Literal["inspector", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("inspector", "reviewer", "admin")  # each may do what those before it may


class ForbiddenError(BlemishError):
    """The visitor's role does not allow this, or the request was not made by a page of ours."""


class LoginError(BlemishError):
    """Nobody is logged in."""


@dataclass(frozen=True)
class Visitor:
    """Who sends a request. `csrf` stands in every form, as its first field, and in the header X-CSRF-Token of what a
    script sends. `user_id` is None on loopback, where nobody logs in."""

    name: str
    role: Role
    csrf: str = ""
    user_id: int | None = None

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


def visitor(request: Request) -> Visitor:
    """Raises `LoginError` where nobody is logged in, as on the pages that are open to all."""
    who = getattr(request.state, "visitor", None)
    if not isinstance(who, Visitor):
        raise LoginError("Log in first.")
    return who


def _least(role: Role) -> Callable[[Visitor], Visitor]:
    def check(who: Annotated[Visitor, Depends(visitor)]) -> Visitor:
        if not who.may(role):
            raise ForbiddenError(f"This takes the role {role}, and {who.name} is {who.role}; ask an admin.")
        return who

    return check


Inspecting = Annotated[Visitor, Depends(_least("inspector"))]
Reviewing = Annotated[Visitor, Depends(_least("reviewer"))]
Administering = Annotated[Visitor, Depends(_least("admin"))]
