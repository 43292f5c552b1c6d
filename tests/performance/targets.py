"""What the gateway is to reach in a run, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from performance.figures import each, failed, p50, rate
from performance.measure import CONNECTIONS, Turn
from performance.overload import Overload
from performance.soak import Soak
from performance.stats import Spread, added, cell, ratio, spread
from performance.subjects import UNCOUNTED

__all__ = ["Target", "missed", "targets"]

# At least so many times a peer's requests a second, at each number of connections; the goal is told, and fails nothing.
TIMES = {
    "sglang-router": (1.0, "must"),
    "litellm": (20.0, "must"),
    "vllm-router": (1.0, "goal"),
    UNCOUNTED: (0.95, "must"),
}
ADDED_P50_MS = 0.25  # at one connection
CPU_US_PER_CHUNK = 50.0
OVERLOAD_P99 = 2.0  # times the p99 of the same requests at half of the capacity
SOAK_MB_PER_50_000 = 2.0  # of resident memory, after the first quarter

type Turns = Mapping[str, Sequence[Turn]]


@dataclass(frozen=True)
class Target:
    """One of them. `met` is None where the run did not measure it."""

    what: str
    bound: str
    found: str
    met: bool | None
    kind: str = "must"

    @property
    def verdict(self) -> str:
        """In a word or two, for a table."""
        return "not measured" if self.met is None else "met" if self.met else "NOT met"


def missed(found: Sequence[Target]) -> list[Target]:
    """Those that must be met and were not."""
    return [target for target in found if target.kind == "must" and target.met is False]


def targets(turns: Turns, soak: Soak | None, over: Overload | None, *, shared: bool = False) -> list[Target]:
    """All that this run can say of: medians over its rounds, ratios within each.

    Where the cores are `shared` with something that only our gateway makes work, what peers do is a goal.
    """
    peers = [replace(target, kind="goal") if shared else target for target in _peers(turns)]
    own = [*peers, *_own(turns)] if turns else []
    return [*own, *(_soak(soak) if soak else ()), *(_overload(over) if over else ())]


def _peers(turns: Turns) -> Iterator[Target]:
    for name, (times, kind) in TIMES.items():
        for n in CONNECTIONS if name in turns else ():
            found = ratio(each(turns["citadel"], rate(n)), each(turns[name], rate(n)))
            what = f"requests a second at {n}, of {name}'s"
            yield Target(what, f"at least {times:g}", cell(found, 2), _met(found, lambda v, t=times: v >= t), kind)


def _own(turns: Turns) -> Iterator[Target]:
    ours = turns["citadel"]
    found = added(each(ours, p50(1)), each(turns["direct"], p50(1)))
    yield _most("added p50 at 1 connection, ms", ADDED_P50_MS, found)
    per_chunk = spread(each(ours, lambda turn: turn.cpu_us_per_chunk))
    yield _most("CPU a streamed chunk, µs", CPU_US_PER_CHUNK, per_chunk, 0)
    measured = [turn for turn in ours if not turn.reason]
    yield _none("failed requests", [failed(measured)] if measured else [])


def _soak(soak: Soak) -> Iterator[Target]:
    most = max(SOAK_MB_PER_50_000, SOAK_MB_PER_50_000 * soak.requests / 50_000)
    grown = Spread(*[soak.growth_mb] * 3)
    yield _most(f"memory grown over {soak.requests:,} requests, MB", most, grown, 1)
    yield _none("failed in the soak", [soak.failed])
    yield _none("connections left after it", [max(0, soak.open_files_after - soak.open_files_before)])
    yield _none("streams that the engine still ran after it", [soak.still_busy_at_engine])


def _overload(over: Overload) -> Iterator[Target]:
    calm, full = over.unloaded_p99_ms, over.admitted_p99_ms
    times = Spread(*[full / calm] * 3) if calm and full else None
    yield _most("p99 at four times the capacity, of the unloaded one", OVERLOAD_P99, times)
    yield _none("refused without Retry-After", [over.refused - over.refused_with_retry_after])
    yield _none("failures that are no refusal", [sum(over.other_failures.values())])


def _met(found: Spread | None, holds: Callable[[float], bool]) -> bool | None:
    return None if found is None else holds(found.middle)


def _most(what: str, most: float, found: Spread | None, digits: int = 2) -> Target:
    return Target(what, f"at most {most:g}", cell(found, digits), _met(found, lambda value: value <= most))


def _none(what: str, counts: Sequence[int]) -> Target:
    return Target(what, "none", f"{sum(counts):,}", not sum(counts) if counts else None)
