"""Everything that one gateway instance holds while it runs; made once, passed to whoever needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

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
        rng: Random | None = None,
    ) -> None:
        """`load_keyring` is called now and on each reload; `rng` draws replicas and pauses. Raises ConfigError."""
        self.config = config
        self.metrics = metrics
        self.log = log
        self.instance = instance
        self.version = version
        self.draining = False  # this instance is about to stop: callers are told to reconnect
        self.keys = load_keyring()
        self._load_keyring = load_keyring
        self._loop = asyncio.get_running_loop()
        self.rng = rng or Random()  # noqa: S311 — chooses replicas, not secrets
        self.models = build_models(config, self._loop, self, self.rng)
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
                self.metrics.breaker_state.labels(model.name, engine.url).set(engine.breaker.state)
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

    def breaker_changed(self, model: ServedModel, engine: Engine) -> None:
        """A replica's breaker is in another state."""
        self.metrics.breaker_state.labels(model.name, engine.url).set(engine.breaker.state)
        self._engine_changed(model, engine)

    def engine_ejected(self, model: ServedModel, engine: Engine, pause_s: float) -> None:
        """A replica is left out for a while."""
        self.metrics.ejections.labels(model.name, engine.url).inc()
        self.log.event("warning", "engine_ejected", model=model.name, engine=engine.url, pause_s=round(pause_s, 3))

    def _cache_changed(self, up: bool, reason: str) -> None:
        self.metrics.cache.up.set(int(up))
        self.log.event("info" if up else "warning", "cache_state", up=up, error=reason or None)

    def publish(self) -> None:
        """Bring the metrics up to date."""
        for model, in_flight, queued in self._gauges:
            in_flight.set(model.in_flight)
            queued.set(model.admission.waiting)
        self.metrics.flush()

    def _tick(self) -> None:
        self.prober.look_at_markers()
        for model in self.models.values():
            model.tick()
        self.publish()

    def _engine_changed(self, model: ServedModel, engine: Engine) -> None:
        model.refresh()
        self.metrics.engine_up.labels(model.name, engine.url).set(int(engine.available))
        self.log.event(
            "info" if engine.available else "warning",
            "engine_state",
            model=model.name,
            engine=engine.url,
            state=engine.state,
            breaker=engine.breaker.state.name.lower(),
            error=engine.last_error,
        )
