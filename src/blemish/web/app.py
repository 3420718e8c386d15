"""The web application: its parts, its routes, and how errors are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from blemish import __version__
from blemish.types import Progress, silent
from blemish.web import (
    answers,
    api,
    api_detectors,
    api_review,
    api_verdicts,
    health,
    pages,
    pages_account,
    pages_agreement,
    pages_detectors,
    pages_history,
    pages_review,
    pages_verdict,
)
from blemish.web.conditional import Conditional
from blemish.web.config import ServeConfig
from blemish.web.database import Database
from blemish.web.detectors import Detectors
from blemish.web.events import Hub
from blemish.web.guard import Guard
from blemish.web.headers import Headers
from blemish.web.imports import bring_images, told
from blemish.web.inspection import Line
from blemish.web.opening import check_whole
from blemish.web.site import Site
from blemish.web.store import Store
from blemish.web.uploads import rooms
from blemish.web.users import Throttle
from blemish.web.watching import Folders, check

ROUTED = (
    api,
    api_detectors,
    api_review,
    api_verdicts,
    health,
    pages,
    pages_account,
    pages_agreement,
    pages_detectors,
    pages_history,
    pages_review,
    pages_verdict,
)
DESCRIPTION = "Judges images, and gives verdicts, corrections, detectors and jobs. Every error has the same shape."


def assembled(config: ServeConfig, progress: Progress = silent, say: Callable[[str], None] = lambda _: None) -> Site:
    """The parts of a server over a data folder: database upgraded, bundles and labelled images brought in, which `say`
    tells of. Raises `BlemishError`."""
    check_whole(config)
    check(config.watch, config.data)
    config.data.mkdir(parents=True, exist_ok=True)
    database = Database(config.url)
    database.upgrade()
    store = Store(config.folder)
    detectors = Detectors(config.folder, database, config.limits)
    for path in config.bundles:
        detectors.bring(path, by="blemish serve")
    for folder in config.images:
        told(say, bring_images(folder, database, store, detectors, progress))
    line = Line(store, database, detectors, config.limits, config.threads)
    folders = Folders(config.watch, line, database, detectors, config.limits)
    return Site(config, database, store, detectors, line, Hub(database), folders)


def application(site: Site) -> FastAPI:
    """The application of a site."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        site.folders.start()
        yield
        await run_in_threadpool(site.folders.stop)
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
    app.state.site, app.state.throttle, app.state.rooms = site, Throttle(), rooms(site.config.limits)
    app.add_middleware(Conditional)
    app.add_middleware(Guard, site=site)
    app.add_middleware(Headers, site=site)  # around the guard, whose answers need them too
    answers.install(app)
    for module in ROUTED:
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=str(files("blemish.web") / "static")), "static")
    return app
