"""Runs the application: the data folder is ours while it runs, the port is told when it answers."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

import uvicorn

from blemish.files import kept
from blemish.types import BlemishError, Progress, silent
from blemish.web import arguments
from blemish.web.app import application, assembled
from blemish.web.config import KIND, WRITTEN, ServeConfig

UNENCRYPTED = (
    "Passwords and images travel unencrypted on this network. Put a reverse proxy with TLS before it, and start it "
    "with --proxy."
)
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
    arguments.check(config)
    # The port before the data folder: to bring images in takes long, and would be in vain.
    with _bound(config) as bound, _owned(config):
        arguments.check_users(config)
        site = assembled(config, progress, say)
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
        server.told = lambda: ready(address(host, port))
        if not config.local and not config.proxy:
            say(UNENCRYPTED)
        server.ending = site.hub.close
        _listen(bound, config)
        server.run([bound])


def _owned(config: ServeConfig) -> AbstractContextManager[object]:
    """With a database server several stations may share the folder; one file has one server."""
    return nullcontext() if config.database else kept(config.data, KIND, WRITTEN, resume=True)


def address(host: str, port: int) -> str:
    """What to type into a browser. Where the server listens on every address, by this machine's name.

    >>> address("::1", 8477)
    'http://[::1]:8477/'
    """
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


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
    """Nobody is let in yet. Raises `BlemishError` where another program listens there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except OSError as cause:
        raise _taken(config, cause) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as cause:
        bound.close()
        raise _taken(config, cause) from None
    return bound


def _listen(bound: socket.socket, config: ServeConfig) -> None:
    try:
        bound.listen()
    except OSError as cause:  # another one bound it too, and was faster
        raise _taken(config, cause) from None


def _taken(config: ServeConfig, cause: OSError) -> BlemishError:
    return BlemishError(
        f"{config.host}:{config.port} cannot be listened on ({cause.strerror}); choose another --port or --host."
    )
