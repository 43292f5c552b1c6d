"""A model: its replicas and which of them may be used, its admission, its retry budget, its latency."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from functools import partial
from random import Random
from time import monotonic
from typing import Protocol

from citadel_llm.api.routing.admission import Admission
from citadel_llm.api.routing.balance import bounded, least_outstanding, sticky
from citadel_llm.api.routing.breaker import BreakerState
from citadel_llm.api.routing.latency import Latency
from citadel_llm.api.routing.outlier import may_eject
from citadel_llm.api.routing.retry import RetryBudget
from citadel_llm.api.upstream.engine import Engine, State
from citadel_llm.utils.config import Config, Model

__all__ = ["Observer", "ServedModel", "build_models"]

_RANK = {State.UP: 0, State.DRAINING: 1, State.STARTING: 2, State.DOWN: 3}


class Observer(Protocol):
    """Who is told what the gateway finds out by itself about replicas."""

    def breaker_changed(self, model: ServedModel, engine: Engine) -> None:
        """A breaker is in another state."""

    def engine_ejected(self, model: ServedModel, engine: Engine, pause_s: float) -> None:
        """A replica is left out for `pause_s`."""


class ServedModel:
    """One entry of the configuration, alive."""

    def __init__(
        self, name: str, config: Config, admission: Admission, engines: list[Engine], observer: Observer, rng: Random
    ) -> None:
        self.name = name
        # Of its answers. The cache did not take part; where it did, who asks says so.
        self.headers = ((b"x-citadel-model", name.encode("ascii")), (b"x-citadel-cache", b"bypass"))
        self.config: Model = config.models[name]
        self.admission = admission
        self.engines = engines
        retry = config.retry
        self.budget = RetryBudget(
            retry.budget_share, retry.budget_floor_per_s, float(retry.budget_burst or admission.places), monotonic
        )
        self.latency = Latency()
        self.candidates: list[Engine] = []  # those that a request may go to now; `refresh` keeps it true
        # The policy matters, and a body is read for it, only where there is a choice.
        self.by_prefix = self.config.policy == "prefix" and len(engines) > 1
        self.by_session = self.config.policy == "session" and len(engines) > 1
        self._load_factor = config.balance.load_factor
        self._ejection = config.ejection
        self._retry_after_s = config.limits.retry_after_s
        self._observer = observer
        self._rng = rng
        self._states = [engine.breaker.state for engine in engines]
        for index, engine in enumerate(engines):
            engine.breaker.changed = partial(self._breaker_changed, index)

    @property
    def state(self) -> State:
        """The best state among the replicas."""
        return min((engine.state for engine in self.engines), key=_RANK.__getitem__)

    @property
    def in_flight(self) -> int:
        """Requests at the replicas from this instance."""
        return sum(engine.in_flight for engine in self.engines)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until a caller may find a replica again: an open breaker's pause, or as configured."""
        waits = [
            engine.breaker.retry_at - monotonic()
            for engine in self.engines
            if engine.reachable and not engine.draining and engine.breaker.state is BreakerState.OPEN
        ]
        return max(1, math.ceil(min(waits))) if waits else self._retry_after_s

    def pick(self, key: int | None = None, tried: Collection[Engine] = ()) -> Engine | None:
        """The replica for a request: one not tried yet, if there is one. None where there is none at all."""
        candidates = self.candidates
        if tried:
            candidates = self.untried(tried) or candidates
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            return None
        if key is None:
            return least_outstanding(candidates, self._rng)
        if self.by_session:
            return sticky(candidates, key)
        return bounded(candidates, key, self._load_factor)

    def untried(self, tried: Collection[Engine]) -> list[Engine]:
        """The replicas that a request was not sent to yet; ejected ones only where all others were tried."""
        fresh = [engine for engine in self.candidates if engine not in tried]
        return fresh or [engine for engine in self.engines if engine.available and engine not in tried]

    def describe(self, chosen: Engine, key: int | None) -> str:
        """The choice in words for a person: policy, replica, loads, and why not the others."""
        policy = self.config.policy if key is not None else "least_outstanding"
        loads, out = [], []
        for engine in self.engines:
            if engine in self.candidates or engine is chosen:
                slow = "" if engine.weight >= 1 else f"*{engine.weight:.2f}"
                loads.append(f"{engine.url}:{engine.in_flight}+{engine.waiting}{slow}")
            elif engine.outlier.until:
                out.append(f"{engine.url} ejected")
            elif engine.state is State.UP or engine.breaker.state is BreakerState.OPEN:
                out.append(f"{engine.url} breaker {engine.breaker.state.name.lower()}")
            else:
                out.append(f"{engine.url} {engine.state}")
        text = f"{self.name}; policy={policy}; chose={chosen.url}; loads={','.join(loads)}"
        return f"{text}; not={','.join(out)}" if out else text

    def refresh(self) -> None:
        """Find out anew which replicas may be used. Those ejected are, if there is no other."""
        usable = [engine for engine in self.engines if engine.available]
        self.candidates = [engine for engine in usable if not engine.outlier.until] or usable

    def tick(self) -> None:
        """Called by the sweeper."""
        back = False
        for engine in self.engines:
            back |= engine.tick()
        if back:
            self.refresh()

    def answered(self, engine: Engine, ticket: int) -> None:
        """The replica began to answer."""
        engine.outlier.streak = 0
        if not engine.breaker.calm:
            engine.breaker.finish(ticket, False)

    def released(self, engine: Engine, ticket: int, failed: bool | None) -> None:
        """The replica answered with an error of the caller's (False), or the request ended before its answer (None)."""
        if failed is False:
            engine.outlier.streak = 0
        engine.breaker.finish(ticket, failed)

    def failed(self, engine: Engine, ticket: int, *, begun: bool = False) -> None:
        """The replica did not answer, answered with an error of its own, or (`begun`) broke its answer off."""
        if begun:
            engine.breaker.broke(ticket)
        else:
            engine.breaker.finish(ticket, True)
        if engine.outlier.failed():
            others = sum(1 for other in self.candidates if other is not engine)
            ejected = sum(1 for other in self.engines if other.outlier.until)
            if may_eject(self._ejection, len(self.engines), ejected, others):
                pause_s = engine.outlier.eject()
                self.refresh()
                self._observer.engine_ejected(self, engine, pause_s)

    def _breaker_changed(self, index: int) -> None:
        self.refresh()
        engine = self.engines[index]
        if engine.breaker.state is not self._states[index]:
            self._states[index] = engine.breaker.state
            self._observer.breaker_changed(self, engine)


def build_models(
    config: Config, loop: asyncio.AbstractEventLoop, observer: Observer, rng: Random
) -> dict[str, ServedModel]:
    """The models of the configuration, in its order."""
    limits = config.limits
    return {
        name: ServedModel(
            name,
            config,
            Admission(
                entry.concurrency or limits.concurrency,
                limits.queue,
                limits.queue_per_key,
                limits.retry_after_s,
                loop,
                limits.wait_factor,
            ),
            [Engine(upstream, loop, config, rng=rng) for upstream in entry.upstreams],
            observer,
            rng,
        )
        for name, entry in config.models.items()
    }
