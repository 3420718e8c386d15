"""What all pages share: the parts of the server, the page frame, the product that a page is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import Depends, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from blemish import __version__
from blemish.reporting.figures import FILTERS
from blemish.types import BlemishError
from blemish.web import review
from blemish.web.access import Role, visitor
from blemish.web.config import ServeConfig
from blemish.web.database import Database
from blemish.web.detectors import Detectors, NoDetectorError
from blemish.web.drift import Drifts
from blemish.web.events import Hub
from blemish.web.inspection import Line
from blemish.web.store import Store
from blemish.web.tables import Verdict
from blemish.web.times import minute
from blemish.web.watching import Folders

# Address, title, and the role that it takes.
PAGES: tuple[tuple[str, str, Role], ...] = (
    ("/", "Inspect", "inspector"),
    ("/review", "Review", "reviewer"),
    ("/detectors", "Detectors", "inspector"),
    ("/history", "History", "inspector"),
)
PRODUCT = "product"  # the cookie that remembers the product


@dataclass(frozen=True)
class Site:
    """The parts of a running server."""

    config: ServeConfig
    database: Database
    store: Store
    detectors: Detectors
    line: Line
    hub: Hub
    folders: Folders
    drifts: Drifts = field(default_factory=Drifts)


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


SiteOf = Annotated[Site, Depends(_site)]
RowId = Annotated[int, Path(ge=1, le=2**31 - 1)]  # a row's number, as large as every database takes


def _product(request: Request, site: SiteOf, product: Annotated[str, Query(max_length=255)] = "") -> str:
    """The product that was asked for, else the last one, else the first. Raises `NoDetectorError` for no product."""
    # Taken before the page looks at anything, so that its events begin with what it has not seen.
    request.state.head = site.hub.head()
    names = [row.name for row in site.detectors.products()]
    if product and product not in names:
        raise NoDetectorError(f"There is no product '{product}'; choose one of the list at the top.")
    remembered = unquote(request.cookies.get(PRODUCT, ""))
    return product or (remembered if remembered in names else names[0] if names else "")


ProductOf = Annotated[str, Depends(_product)]


def _named_product(site: SiteOf, product: Annotated[str, Query(max_length=255)] = "") -> str:
    """The product that a program names; where there is one only, it need not. Raises `BlemishError` where it must, so
    that nothing is judged as something else, and `NoDetectorError` for no product."""
    names = [row.name for row in site.detectors.products()]
    if product not in names and product:
        raise NoDetectorError(f"There is no product '{product}'; the products are: {', '.join(names)}.")
    if not product and len(names) > 1:
        raise BlemishError(f"Say which product the image shows: product={' or '.join(names)}.")
    return product or "".join(names)


NamedProduct = Annotated[str, Depends(_named_product)]

environment = Environment(
    loader=PackageLoader("blemish.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.globals |= {"version": __version__, "pages": PAGES, "minute": minute}
environment.filters |= FILTERS | {"minute": minute}


def page(request: Request, template: str, *, product: str = "", status: int = 200, **context: Any) -> HTMLResponse:
    """A page in the frame of `base.html`, for the visitor who asks."""
    site = _site(request)
    names = [row.name for row in site.detectors.products()]
    with site.database.reading() as session:
        waiting = review.waiting(session, product) if product else 0
    frame = {
        "request": request,
        "visitor": visitor(request),
        "product": product,
        "products": names,
        "waiting": waiting,
        "path": request.url.path,
        "head": getattr(request.state, "head", None) or site.hub.head(),
    }
    html = environment.get_template(template).render(frame | context)
    response = HTMLResponse(html, status_code=status)
    if product:
        response.set_cookie(
            PRODUCT,
            quote(product),  # which may be in any script
            samesite="lax",
            httponly=True,
            max_age=31_536_000,
        )
    return response


def leads(request: Request, address: str) -> Response:
    """The answer to a form that was sent: a browser goes on to `address`, a script is told where to go."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"next": address})
    return RedirectResponse(address, 303)


def fragment(template: str, **context: Any) -> str:
    """A part of a page."""
    return environment.get_template(template).render(context)


def verdict_or_404(site: Site, verdict_id: int) -> Verdict:
    """Raises `MissingError` where there is none."""
    with site.database.reading() as session:
        verdict = session.get(Verdict, verdict_id)
    if verdict is None:
        raise MissingError(f"There is no verdict {verdict_id}.")
    return verdict


class MissingError(NoDetectorError):
    """There is nothing at this address."""
