"""Who knows the callers, as a configuration describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from citadel_llm.api.middleware.auth import Authenticator
from citadel_llm.utils.config import Config
from citadel_llm.utils.keys import KeyRing, load_pepper
from citadel_llm.utils.logging import LogWriter

if TYPE_CHECKING:
    from citadel_llm.api.identity.directory import Directory
    from citadel_llm.api.identity.keeper import Keeper
    from citadel_llm.api.identity.passwords import Passwords
    from citadel_llm.integration.cache.redis import Redis
    from citadel_llm.integration.database.pool import Database

__all__ = ["Identity"]


class Identity:
    """The authenticator and what stands behind it; `keeper` and `passwords` are there where a database is."""

    def __init__(
        self,
        config: Config,
        ring: KeyRing,
        database: Database | None,
        redis: Redis | None,
        *,
        on_loaded: Callable[[Directory], None],
        on_seen: Callable[[], None],
        log: LogWriter,
    ) -> None:
        """Raises ConfigError where the pepper can't be read."""
        self._config = config
        self.keeper: Keeper | None = None
        self.passwords: Passwords | None = None
        self.pepper = b""
        if database is not None:
            self._stand_behind(config, database, redis, on_loaded, on_seen, log)
        self.callers = Authenticator(ring, keeper=self.keeper, pepper=self.pepper, passwords=self.passwords)

    def _stand_behind(
        self,
        config: Config,
        database: Database,
        redis: Redis | None,
        on_loaded: Callable[[Directory], None],
        on_seen: Callable[[], None],
        log: LogWriter,
    ) -> None:
        from citadel_llm.api.identity.keeper import Keeper  # noqa: PLC0415 — only where wanted
        from citadel_llm.api.identity.lockout import Lockout  # noqa: PLC0415
        from citadel_llm.api.identity.passwords import Passwords  # noqa: PLC0415

        auth = config.auth
        self.pepper = load_pepper(Path(auth.pepper_file))
        snapshot = Path(auth.snapshot_file) if auth.snapshot_file else None
        self.keeper = keeper = Keeper(
            database,
            redis,
            snapshot=snapshot,
            refresh_s=auth.refresh_s,
            on_loaded=on_loaded,
            on_seen=on_seen,
            log=log,
        )
        if auth.basic:
            self.passwords = Passwords(lambda: keeper.directory, Lockout(redis, self.pepper))

    async def start(self) -> None:
        """Read who there is."""
        if self.keeper is not None:
            await self.keeper.start()

    async def stop(self) -> None:
        """Read no more."""
        if self.keeper is not None:
            await self.keeper.stop()
        if self.passwords is not None:
            self.passwords.close()

    def reload(self, ring: KeyRing) -> None:
        """Take these keys of the file from now on, and the pepper as it is now. Raises ConfigError."""
        if self.keeper is not None:
            self.pepper = self.callers.pepper = load_pepper(Path(self._config.auth.pepper_file))
        self.callers.ring = ring

    def wake(self) -> None:
        """The database has come back: look at it now."""
        if self.keeper is not None:
            self.keeper.wake()

    async def changed(self) -> None:
        """Somebody has changed who may do what, by this instance: make it so here, and tell the others."""
        if self.keeper is not None:
            await self.keeper.changed()
