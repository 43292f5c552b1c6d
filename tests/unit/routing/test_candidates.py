"""A model's candidates, whatever happens to its replicas: none that may not be used, and none left out without need."""

from __future__ import annotations

import asyncio
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.admission import Admission
from citadel_llm.api.routing.breaker import BreakerState
from citadel_llm.api.upstream.engine import Engine
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.utils.config import parse_config


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Nobody:
    """Takes notice of nothing."""

    def breaker_changed(self, model: ServedModel, engine: Engine) -> None:
        assert engine in model.engines

    def engine_ejected(self, model: ServedModel, engine: Engine, pause_s: float) -> None:
        assert any(other is not engine for other in model.candidates), "the last replica was ejected"
        assert pause_s > 0


def made(replicas: int, policy: str, clock: Clock, loop: asyncio.AbstractEventLoop) -> ServedModel:
    upstreams = [{"url": f"http://10.0.0.{n}:11400"} for n in range(replicas)]
    config = parse_config(
        {
            "auth": {"keys_file": "unused"},
            "models": {"m": {"upstreams": upstreams, "policy": policy}},
            "breaker": {"window": 6, "min_requests": 4, "open_s": 4},
            "ejection": {"failures": 2},
        }
    )
    rng = Random(3)
    engines = [Engine(upstream, loop, config, clock=clock, rng=rng) for upstream in config.models["m"].upstreams]
    model = ServedModel("m", config, Admission(8, 8, None, 5, loop), engines, Nobody(), rng)
    for engine in engines:
        engine.seen_up()
    model.refresh()
    return model


EVENTS = st.tuples(
    st.sampled_from(["up", "down", "drain", "stay", "fail", "answer", "begin", "late fail", "wait"]), st.integers(0, 9)
)


def replica_changes(model: ServedModel, what: str, engine: Engine) -> None:
    """As the prober and the markers tell it."""
    if what == "up":
        engine.seen_up()
    elif what == "down":
        engine.seen_down("gone")
    else:
        engine.draining = what == "drain"
    model.refresh()


def request_ends(model: ServedModel, what: str, key: int, begun: list[tuple[Engine, int]]) -> None:
    """A request goes to the replica that is picked, and ends as `what` says, or later."""
    if what == "late fail":
        if begun:
            model.failed(*begun.pop(key % len(begun)))
        return
    picked = model.pick(key)
    ticket = None if picked is None else picked.breaker.begin()
    if picked is None or ticket is None:
        return
    if what == "fail":
        model.failed(picked, ticket)
    elif what == "answer":
        model.answered(picked, ticket)
    else:
        begun.append((picked, ticket))


@given(st.integers(1, 4), st.sampled_from(["least_outstanding", "prefix", "session"]), st.lists(EVENTS, max_size=80))
def test_no_replica_is_picked_that_may_not_be_used(replicas: int, policy: str, events: list[tuple[str, int]]) -> None:
    clock, loop = Clock(), asyncio.new_event_loop()
    try:
        model = made(replicas, policy, clock, loop)
        begun: list[tuple[Engine, int]] = []
        for what, number in events:
            if what == "wait":
                clock.now += number
                model.tick()
            elif what in ("up", "down", "drain", "stay"):
                replica_changes(model, what, model.engines[number % replicas])
            else:
                request_ends(model, what, number, begun)
            usable = [engine for engine in model.engines if engine.available]
            for key in (None, number):
                picked = model.pick(key)
                assert (picked is None) == (not usable)
                if picked is not None:
                    assert picked.reachable
                    assert not picked.draining
                    assert picked.breaker.state is not BreakerState.OPEN or clock.now >= picked.breaker.retry_at
                    assert not picked.outlier.until or all(engine.outlier.until for engine in usable)
    finally:
        loop.close()
