"""A model: its engines, and the gate in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from citadel_llm.api.upstream.engine import Engine, State
from citadel_llm.api.upstream.gate import Gate
from citadel_llm.utils.config import Config, Model

__all__ = ["ServedModel", "build_models"]

_RANK = {State.UP: 0, State.DRAINING: 1, State.STARTING: 2, State.DOWN: 3}


class ServedModel:
    """One entry of the configuration, alive."""

    def __init__(self, name: str, config: Model, gate: Gate, engines: list[Engine]) -> None:
        self.name = name
        self.header = name.encode("ascii")
        self.config = config
        self.gate = gate
        self.engines = engines

    @property
    def state(self) -> State:
        """The best state among the engines."""
        return min((engine.state for engine in self.engines), key=_RANK.__getitem__)

    @property
    def in_flight(self) -> int:
        """Requests at the engines from this instance."""
        return sum(engine.in_flight for engine in self.engines)

    def pick(self, tried: Collection[Engine] = ()) -> Engine | None:
        """The available engine with the fewest requests in flight; one not tried yet, if there is one."""
        best: Engine | None = None
        for engine in self.engines:
            if engine.available and engine not in tried and (best is None or engine.in_flight < best.in_flight):
                best = engine
        if best is None and tried:
            return self.pick()
        return best


def build_models(config: Config, loop: asyncio.AbstractEventLoop) -> dict[str, ServedModel]:
    """The models of the configuration, in its order."""
    return {
        name: ServedModel(
            name,
            entry,
            Gate(entry.concurrency or config.limits.concurrency, config.limits.queue, loop),
            [Engine(upstream, loop) for upstream in entry.upstreams],
        )
        for name, entry in config.models.items()
    }
