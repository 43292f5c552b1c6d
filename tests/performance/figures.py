"""What a turn of a subject says: the figures that the report shows and the targets are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from performance.measure import Turn

__all__ = ["chunk_rate", "cpu", "each", "failed", "first", "first_quickack", "p50", "p99", "rate", "share"]


def each(turns: Sequence[Turn], figure: Callable[[Turn], float | None]) -> list[float | None]:
    """It of each turn, None where the turn was not measured."""
    return [None if turn.reason else figure(turn) for turn in turns]


def rate(connections: int) -> Callable[[Turn], float | None]:
    """Requests a second at so many connections."""
    return lambda turn: turn.points[connections].outcome.requests_per_s


def p50(connections: int) -> Callable[[Turn], float | None]:
    """Median latency in ms at so many connections."""
    return lambda turn: turn.points[connections].outcome.p50_ms


def p99(connections: int) -> Callable[[Turn], float | None]:
    """The latency in ms of all but one in a hundred, at so many connections."""
    return lambda turn: turn.points[connections].outcome.p99_ms


def cpu(connections: int) -> Callable[[Turn], float | None]:
    """The subject's processor time in µs for a request, at so many connections."""
    return lambda turn: turn.points[connections].cpu_us


def share(connections: int) -> Callable[[Turn], float | None]:
    """How much of its core the subject had, at so many connections."""
    return lambda turn: turn.points[connections].core_share


def first(turn: Turn) -> float | None:
    """Median time in ms to a stream's first event."""
    return turn.first.first_p50_ms if turn.first else None


def first_quickack(turn: Turn) -> float | None:
    """The same, for a client that acknowledges at once."""
    return turn.first_quickack.first_p50_ms if turn.first_quickack else None


def chunk_rate(turn: Turn) -> float | None:
    """Chunks of streams a second."""
    return turn.stream.events / turn.stream.took_s if turn.stream and turn.stream.took_s else None


def failed(turns: Sequence[Turn]) -> int:
    """Requests and streams that failed, of all turns."""
    outcomes = [p.outcome for turn in turns for p in turn.points.values()]
    outcomes += [o for turn in turns for o in (turn.stream, turn.first, turn.first_quickack) if o is not None]
    return sum(outcome.failed for outcome in outcomes)
