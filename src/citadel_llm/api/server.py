"""Runs one gateway instance: uvicorn on a socket, the service manager told, a stop that loses no request."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn

from citadel_llm import __version__
from citadel_llm.api.gateway import Gateway
from citadel_llm.api.protocol import bounded_protocol
from citadel_llm.api.state import GatewayState
from citadel_llm.api.tls import HANDSHAKE_S, Certificate
from citadel_llm.utils.config import Config, ConfigError
from citadel_llm.utils.logging import LogWriter, StdlibHandler
from citadel_llm.utils.monitoring import Notifier

__all__ = ["serve"]

_POLL_S = 0.05


class _Server(uvicorn.Server):
    """uvicorn's server with a gentler end.

    uvicorn closes idle connections at once when it stops, and a caller that sends its next
    request just then loses it. Here the sockets close first; for `drain_s` every answer asks
    its caller to reconnect, which reaches another instance; only then uvicorn's own stop begins.
    """

    def __init__(
        self, config: uvicorn.Config, state: GatewayState, notifier: Notifier, certificate: Certificate | None
    ) -> None:
        super().__init__(config)
        self._state = state
        self._notifier = notifier
        self._certificate = certificate

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Called by uvicorn, whose own version ends the process by the signal it has just handled."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn; afterwards requests are answered."""
        tls = self._state.config.tls
        secured = [sock for sock in sockets or () if tls is not None and sock.getsockname()[1] == tls.port]
        await super().startup([sock for sock in sockets or () if sock not in secured])
        if self._certificate is not None:
            for sock in secured:
                self.servers.append(
                    await asyncio.get_running_loop().create_server(
                        self._make_protocol,
                        sock=sock,
                        backlog=self.config.backlog,
                        ssl=self._certificate.context,
                        ssl_handshake_timeout=HANDSHAKE_S,
                    )
                )
        self._notifier.ready(_status(self._state))
        self._state.log.event(
            "info",
            "ready",
            pid=os.getpid(),
            version=__version__,
            models={name: model.state for name, model in self._state.models.items()},
        )

    def _make_protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn when a signal asked for the end."""
        self._notifier.stopping()
        self._state.draining = True
        self._state.log.event("info", "stopping", in_flight=len(self._state.sweeper))
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._state.config.server.drain_s
        while self.server_state.connections and loop.time() < end and not self.force_exit:
            await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)


async def serve(
    make_state: Callable[[], GatewayState],
    config: Config,
    sockets: list[socket.socket],
    notifier: Notifier,
    log: LogWriter,
) -> None:
    """Serve on `sockets` until SIGTERM or SIGINT. Raises ConfigError where the state can't be made."""
    handler = StdlibHandler(log)
    for name in ("uvicorn", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    state = make_state()
    certificate = Certificate(config.tls) if config.tls is not None else None
    gateway = Gateway(state)
    gateway.prepare()
    options = uvicorn.Config(
        gateway,
        http=bounded_protocol(gateway.hot, config.timeouts.body_s, config.timeouts.chunk_s),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(config.server.keepalive_s),
        timeout_graceful_shutdown=math.ceil(config.server.shutdown_s),
        backlog=2048,
    )
    await state.start()
    server = _Server(options, state, notifier, certificate)
    watchdog = asyncio.create_task(_feed(notifier, notifier.watchdog_s / 3)) if notifier.watchdog_s else None
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, state, notifier, certificate)
    try:
        await server.serve(sockets)
    finally:
        if watchdog is not None:
            watchdog.cancel()
        await state.stop()
        log.event("info", "stopped", pid=os.getpid())


def _status(state: GatewayState) -> str:
    return f"serving {len(state.models)} models, {len(state.callers)} keys"


async def _feed(notifier: Notifier, interval_s: float) -> None:
    while True:
        notifier.alive()
        await asyncio.sleep(interval_s)


def _reload(state: GatewayState, notifier: Notifier, certificate: Certificate | None) -> None:
    notifier.reloading()
    state.reload_keys()
    if certificate is not None:
        try:
            certificate.reload()
        except ConfigError as error:
            state.log.event("error", "certificate_not_reloaded", message=str(error))
        else:
            state.log.event("info", "certificate_reloaded")
    notifier.ready(_status(state))
