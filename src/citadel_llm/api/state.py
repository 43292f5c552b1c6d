"""Everything that one gateway instance holds while it runs; made once, passed to whoever needs it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from citadel_llm.api.audit.audit import build_audit
from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.build import build_files
from citadel_llm.api.identity.build import Identity
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits.bounds import BoundsTable
from citadel_llm.api.limits.catchup import CatchUp
from citadel_llm.api.limits.limiter import Limiter
from citadel_llm.api.limits.table import Table
from citadel_llm.api.middleware.exchange import Sweeper
from citadel_llm.api.routes.semantic import build_semantic
from citadel_llm.api.tracing.tracer import build_tracer
from citadel_llm.api.upstream.drains import Drains
from citadel_llm.api.upstream.engine import Engine
from citadel_llm.api.upstream.model import ServedModel, build_models
from citadel_llm.api.upstream.prober import Prober
from citadel_llm.api.upstream.registrar import Registrar
from citadel_llm.integration.cache.build import build_cache, build_flights
from citadel_llm.integration.database.build import build_database
from citadel_llm.integration.metrics import Metrics
from citadel_llm.integration.vector.build import build_vector
from citadel_llm.utils.config import Config, ConfigError
from citadel_llm.utils.cost import model_hour, prices_of
from citadel_llm.utils.keys import KeyRing
from citadel_llm.utils.logging import LogWriter

if TYPE_CHECKING:
    from citadel_llm.api.identity.directory import Directory

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
        self._load_keyring = load_keyring
        self._loop = asyncio.get_running_loop()
        self.rng = rng or Random()  # noqa: S311 — chooses replicas, not secrets
        self.models = build_models(config, self._loop, self, self.rng)
        self.drains = Drains(config.server.drained_folder)
        self.prober = Prober(self.models.values(), config.probe, self.drains, self._engine_changed)
        self.cache = build_cache(config.cache, metrics.cache, self._cache_changed)
        self.flights = build_flights(config.cache)
        self.vector = build_vector(config.vector, metrics.vector, self._vector_changed)
        self.database = build_database(config.database, self._database_changed, metrics.database)
        self.registrar = (
            Registrar(
                self.models,
                self.database,
                log.event,
                host=socket.gethostname(),
                release=version,
                timeout_s=config.probe.timeout_s,
            )
            if self.database is not None
            else None
        )
        self.limiter = Limiter(
            Table(config.limits.table_file),
            config.limits,
            metrics,
            CatchUp(self.database, config.limits.hosts) if self.database is not None else None,
        )
        self.identity = Identity(
            config,
            load_keyring(),
            self.database,
            self.cache.redis if self.cache is not None else None,
            on_loaded=self._identities_read,
            on_seen=metrics.identities_seen,
            log=log,
        )
        self.callers = self.identity.callers
        prices = prices_of(config)
        hours = {name: model_hour(config.cost, config.models[name]) for name in prices if config.cost is not None}
        metrics.business.begin(config.models, prices, hours)
        self.audit = build_audit(
            config.audit, self.database, metrics.audit, log.event, instance=instance, prices=prices
        )
        self.files = build_files(self)
        self.semantic = build_semantic(self)
        self.tracer = build_tracer(config.tracing, metrics, log, self.rng, version=version, instance=instance)
        for name, model in self.models.items():
            metrics.expect(name, [engine.url for engine in model.engines], model.config.fallback)
        if self.database is not None:
            metrics.database_up.set(0)
        if self.cache is not None:
            metrics.cache.up.set(0)
        self.sweeper = Sweeper(config.limits.retry_after_s, self._tick)
        self._gauges = [
            (model, metrics.in_flight.labels(name), metrics.queued.labels(name)) for name, model in self.models.items()
        ]

    @property
    def bounds(self) -> BoundsTable:
        """Of the callers, those in force."""
        return self.limiter.bounds

    @bounds.setter
    def bounds(self, bounds: BoundsTable) -> None:
        self.limiter.bounds = bounds

    async def start(self) -> None:
        """Look at every engine once, then watch them."""
        for model in self.models.values():
            for engine in model.engines:
                self.metrics.engine_up.labels(model.name, engine.url).set(0)
                self.metrics.breaker_state.labels(model.name, engine.url).set(engine.breaker.state)
        self.sweeper.start(self._loop)
        if self.cache is not None:
            self.cache.redis.start()
        if self.vector is not None:
            await self.vector.prepare()
        if self.database is not None:
            await self.database.start()
            await self.identity.start()
        if self.registrar is not None:
            self.registrar.start()
        if self.audit is not None:
            self.audit.start()
        await self.prober.start()
        if self.files is not None:
            await self.files.start()
        if self.semantic is not None:
            self.semantic.start()

    async def stop(self) -> None:
        """End the watching and close what is open."""
        if self.files is not None:
            await self.files.stop()
        if self.semantic is not None:
            await self.semantic.stop()
        self.sweeper.stop()
        await self.prober.stop()
        if self.registrar is not None:
            await self.registrar.stop()
        await self.identity.stop()
        if self.cache is not None:
            await self.cache.redis.stop()
        if self.audit is not None:
            await self.audit.stop()
        if self.vector is not None:
            await self.vector.close()
        if self.database is not None:
            await self.database.stop()
        for model in self.models.values():
            for engine in model.engines:
                engine.close_idle()
        if self.tracer is not None:
            await self.tracer.stop()
        self.limiter.table.close()
        self.metrics.close()

    def identify(self, authorization: bytes | None, client: str | None = None) -> Principal | None:
        """Whoever sent a request with this header, from this address; None where that takes `verify`.

        Raises ApiError 401, and 503 where nobody may ask now.
        """
        audit = self.audit
        try:
            principal = self.callers.identify(authorization)
        except ApiError as refusal:
            self.metrics.refused_caller(refusal.code)
            if audit is not None:
                audit.refused(refusal.code, client)
            raise
        if audit is not None and audit.closed:
            raise audit.refusal()
        return principal

    async def verify(self, authorization: bytes | None, client: str | None) -> Principal:
        """Whoever sent a request with this header, from this address. Raises ApiError 401 and 429."""
        principal = self.identify(authorization, client)
        if principal is not None:
            return principal
        assert authorization is not None  # noqa: S101 — none is refused
        try:
            return await self.callers.verify(authorization, client)
        except ApiError as refusal:
            self.metrics.refused_caller(refusal.code)
            if self.audit is not None:
                self.audit.refused(refusal.code, client)
            raise

    def reload_keys(self) -> bool:
        """Read the keys again; where that fails, the old ones stay in force."""
        try:
            self.identity.reload(self._load_keyring())
        except ConfigError as error:
            self.log.event("error", "keys_not_reloaded", message=str(error))
            return False
        self.log.event("info", "keys_reloaded", count=len(self.callers))
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

    def _identities_read(self, directory: Directory) -> None:
        self.bounds = directory.bounds

    def _vector_changed(self, up: bool, reason: str) -> None:
        self.metrics.vector.up.set(int(up))
        self.log.event("info" if up else "warning", "vector_state", up=up, error=reason or None)

    def _database_changed(self, up: bool, reason: str) -> None:
        if up:
            self.identity.wake()
            if self.registrar is not None:
                self.registrar.wake()
        self.metrics.database_up.set(int(up))
        self.log.event("info" if up else "warning", "database_state", up=up, error=reason or None)

    def publish(self) -> None:
        """Bring the metrics up to date."""
        for model, in_flight, queued in self._gauges:
            in_flight.set(model.in_flight)
            queued.set(model.admission.waiting)
        if self.audit is not None:
            self.audit.publish()
        self.metrics.flush()

    def _tick(self) -> None:
        self.prober.look_at_markers()
        for model in self.models.values():
            model.tick()
        self.limiter.tick()
        self.publish()

    def _engine_changed(self, model: ServedModel, engine: Engine) -> None:
        model.refresh()
        if engine.available and self.registrar is not None:
            self.registrar.wake()
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
