"""Runs the application: the data folder is ours while it runs, the port is told when it answers."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import uvicorn

from blemish.files import kept
from blemish.types import BlemishError, Progress, silent
from blemish.web import users
from blemish.web.app import application, assembled
from blemish.web.config import KIND, WRITTEN, ServeConfig

GRACE = 3  # seconds that open requests may take after a signal; event streams are ended


def serve(
    config: ServeConfig,
    ready: Callable[[str], None],
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves until a signal ends the process; `ready` gets the address once it answers, and `say` sentences on the
    images that are imported. Raises `BlemishError` where the data folder is not ours or in use, nobody could log in,
    the port is taken, or a bundle cannot be read."""
    # With a database server several stations may share the folder; one file has one server.
    own = nullcontext() if config.database else kept(config.data, KIND, WRITTEN, resume=True)
    with own:
        site = assembled(config, progress, say)
        if not config.local and not users.listed(site.database):
            raise BlemishError(
                "Where others can reach it, people log in, and nobody can yet; make the first user with: "
                f"blemish user NAME --role admin --data {config.data}."
            )
        bound = _bound(config)
        host, port = bound.getsockname()[:2]
        server = _Server(
            uvicorn.Config(
                application(site),
                log_level="warning",
                lifespan="on",
                server_header=False,
                proxy_headers=False,  # `guard.py` believes them where a proxy is said to be there
                timeout_graceful_shutdown=GRACE,
            )
        )
        server.told = lambda: ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        server.ending = site.hub.close
        server.run([bound])


class _Server(uvicorn.Server):
    """Tells when it answers, and when it is about to end."""

    told: Callable[[], None]
    ending: Callable[[], Awaitable[None]]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.ending()
        await super().shutdown(sockets)


def _bound(config: ServeConfig) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as cause:
        raise BlemishError(
            f"{config.host}:{config.port} cannot be listened on ({cause.strerror}); choose another --port or --host."
        ) from None
    return bound
