"""Everything that one gateway instance holds while it runs; made once, passed to whoever needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from citadel_llm.api.middleware.exchange import Sweeper
from citadel_llm.api.upstream.engine import Engine
from citadel_llm.api.upstream.model import ServedModel, build_models
from citadel_llm.api.upstream.prober import Prober
from citadel_llm.integration.cache.build import build_cache, build_flights
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import Config, ConfigError
from citadel_llm.utils.keys import KeyRing
from citadel_llm.utils.logging import LogWriter

__all__ = ["GatewayState"]


class GatewayState:
    """Built inside the running event loop; `start` and `stop` bracket its life."""

    def __init__(
        self,
        config: Config,
        load_keyring: Callable[[], KeyRing],
        metrics: Metrics,
        log: LogWriter,
        *,
        instance: str,
        version: str,
    ) -> None:
        """`load_keyring` is called now and on each reload. Raises ConfigError."""
        self.config = config
        self.metrics = metrics
        self.log = log
        self.instance = instance
        self.version = version
        self.draining = False  # this instance is about to stop: callers are told to reconnect
        self.keys = load_keyring()
        self._load_keyring = load_keyring
        self._loop = asyncio.get_running_loop()
        self.models = build_models(config, self._loop)
        self.prober = Prober(self.models.values(), config.probe, self._engine_changed)
        self.cache = build_cache(config.cache, metrics.cache, self._cache_changed)
        self.flights = build_flights(config.cache)
        self.sweeper = Sweeper(config.limits.retry_after_s, self._tick)
        self._gauges = [
            (model, metrics.in_flight.labels(name), metrics.queued.labels(name)) for name, model in self.models.items()
        ]

    async def start(self) -> None:
        """Look at every engine once, then watch them."""
        for model in self.models.values():
            for engine in model.engines:
                self.metrics.engine_up.labels(model.name, engine.url).set(0)
        self.sweeper.start(self._loop)
        if self.cache is not None:
            self.cache.redis.start()
        await self.prober.start()

    async def stop(self) -> None:
        """End the watching and close what is open."""
        self.sweeper.stop()
        await self.prober.stop()
        if self.cache is not None:
            await self.cache.redis.stop()
        for model in self.models.values():
            for engine in model.engines:
                engine.close_idle()
        self.metrics.close()

    def reload_keys(self) -> bool:
        """Read the keys again; where that fails, the old ones stay in force."""
        try:
            self.keys = self._load_keyring()
        except ConfigError as error:
            self.log.event("error", "keys_not_reloaded", message=str(error))
            return False
        self.log.event("info", "keys_reloaded", count=len(self.keys))
        return True

    def engine_failed(self, model: ServedModel, engine: Engine, error: str) -> None:
        """A request found that the engine does not take connections."""
        if engine.seen_down(error):
            self._engine_changed(model, engine)

    def _cache_changed(self, up: bool, reason: str) -> None:
        self.metrics.cache.up.set(int(up))
        self.log.event("info" if up else "warning", "cache_state", up=up, error=reason or None)

    def _tick(self) -> None:
        self.prober.look_at_markers()
        for model, in_flight, queued in self._gauges:
            in_flight.set(model.in_flight)
            queued.set(model.gate.waiting)

    def _engine_changed(self, model: ServedModel, engine: Engine) -> None:
        self.metrics.engine_up.labels(model.name, engine.url).set(int(engine.available))
        self.log.event(
            "info" if engine.available else "warning",
            "engine_state",
            model=model.name,
            engine=engine.url,
            state=engine.state,
            error=engine.last_error,
        )
