"""The server itself: uvicorn, with connections of our own."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from inkstone.errors import UsageError
from inkstone.serving.app import create_app
from inkstone.serving.config import ServeConfig
from inkstone.serving.connection import Protocol
from inkstone.serving.hosted import Hosted

HEAD_BYTES = 1 << 16
IDLE_S = 15
BACKLOG = 2048
SWITCH_S = 0.0005  # after which a thread that computes has to let others have the interpreter


class Server(uvicorn.Server):
    """Serves models until it is told to stop.

    Args:
        hosted: The models.
        config: Who may ask, and how much.
        told: Called with the address once it answers.

    Raises:
        UsageError: The port is taken, or strangers could ask without a key.
    """

    def __init__(
        self, hosted: Sequence[Hosted], config: ServeConfig, *, told: Callable[[str], None] = print
    ) -> None:
        self.socket = _listen(config)
        self.port = int(self.socket.getsockname()[1])
        self.told = told
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.url = f"http://{host}:{self.port}"
        settings = uvicorn.Config(
            create_app(hosted, config), log_config=None, access_log=False, server_header=False,
            http=Protocol, ws="none", h11_max_incomplete_event_size=HEAD_BYTES, backlog=BACKLOG,
            timeout_keep_alive=IDLE_S, timeout_graceful_shutdown=max(1, round(config.grace_s)),
            lifespan="on", proxy_headers=False,
        )  # fmt: skip
        super().__init__(settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then the address is told."""
        await super().startup(sockets=sockets)
        if self.started:
            self.told(self.url)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve."""
        super().run(sockets=[self.socket] if sockets is None else sockets)


def _listen(config: ServeConfig) -> socket.socket:
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        # with its protocol named asyncio sends small pieces at once (TCP_NODELAY)
        listening = socket.socket(*found[:3])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
    except OSError as error:
        raise UsageError(
            f"{config.host}:{config.port} cannot be had: {error.strerror}",
            fix="choose another --port, or 0 for any that is free",
        ) from error
    listening.listen(BACKLOG)
    return listening


def serve(hosted: Sequence[Hosted], config: ServeConfig, **options: Any) -> None:
    """Serve models until Ctrl-C or SIGTERM; answers that are on their way may end."""
    # Every call of the system lets the interpreter go to the engine's thread, and to turn somebody
    # away takes several: with Python's 5 ms each, that alone would be felt.
    sys.setswitchinterval(SWITCH_S)
    Server(hosted, config, **options).run()
