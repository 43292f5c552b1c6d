"""Messages of Redis channels, on a connection of their own.

    listener = Listener("/run/citadel-redis/redis.sock", load_credentials, options, ["citadel:keys"],
                        on_message=revoke, on_gap=read_all_again)
    listener.start()

Redis keeps no message for a listener that is away. `on_gap` is called each time that the listener (again) listens:
what may have been missed must then be read from where it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from citadel_llm.integration.cache.connection import Connection, Options
from citadel_llm.integration.cache.redis import Credentials, Link

__all__ = ["Listener"]


class Listener(Link):
    """Listens for as long as it is started."""

    def __init__(
        self,
        path: str,
        credentials: Callable[[], Credentials],
        options: Options,
        channels: Sequence[str],
        *,
        on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None],
        on_change: Callable[[bool, str], None] | None = None,
        rng: Random | None = None,
    ) -> None:
        super().__init__(path, credentials, options, on_change=on_change, rng=rng)
        self._channels = list(channels)
        self._on_message = on_message
        self._on_gap = on_gap

    async def opened(self, connection: Connection) -> None:
        """Subscribe."""
        connection.on_push = self._pushed
        for channel in self._channels:  # one call a channel, as each gets its own reply
            await connection.call(b"SUBSCRIBE", channel)
        self._on_gap()

    def _pushed(self, reply: list[Any]) -> None:
        if reply[0] == b"message":
            self._on_message(reply[1].decode(), reply[2])
