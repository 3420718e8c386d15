"""The web application: its parts, its routes, and how errors are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from blemish import __version__
from blemish.web import answers, api, api_review, pages, pages_agreement, pages_review
from blemish.web.config import ServeConfig
from blemish.web.database import Database
from blemish.web.detectors import Detectors
from blemish.web.events import Hub
from blemish.web.inspection import Line
from blemish.web.site import Site
from blemish.web.store import Store

DESCRIPTION = "Judges images, and gives verdicts, corrections, detectors and jobs. Every error has the same shape."


def assembled(config: ServeConfig) -> Site:
    """The parts of a server over a data folder: database upgraded, bundles brought in. Raises `BlemishError`."""
    database = Database(config.url)
    database.upgrade()
    store = Store(config.folder)
    detectors = Detectors(config.folder, database, config.limits)
    for path in config.bundles:
        detectors.bring(path, by="blemish serve")
    line = Line(store, database, detectors, config.limits, config.threads)
    return Site(config, database, store, detectors, line, Hub(database))


def application(site: Site) -> FastAPI:
    """The application of a site."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        site.database.close()

    app = FastAPI(
        title="blemish",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.site = site
    answers.install(app)
    for module in (api, pages, api_review, pages_agreement, pages_review):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=str(files("blemish.web") / "static")), "static")
    return app
