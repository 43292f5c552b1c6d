"""The gateway under many requests, streams and callers that hang up: does its memory or do its files grow?"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field

from performance.measure import Bench
from performance.procs import wait_for

__all__ = ["Soak", "soak"]

SLICES = 20
STREAM_EVERY, HANGUP_EVERY = 10, 2
GAP_US = 15_000  # streams of half a second, so that what a caller's hanging up cuts is worth cutting
SETTLE_S = 12.0  # idle connections to the engine end after five seconds


@dataclass
class Soak:
    """What was seen. The curve holds a point after each slice: requests so far and resident memory in MB."""

    requests: int = 0
    streams_hung_up: int = 0
    streams_cut_at_engine: int = 0
    still_busy_at_engine: int = 0
    failed: int = 0
    took_s: float = 0.0
    rss_before_mb: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    open_files_before: int = 0
    open_files_after: int = 0

    @property
    def growth_mb(self) -> float:
        """From the curve's first quarter to its end; what is before is warming up."""
        return self.curve[-1][1] - self.curve[len(self.curve) // 4][1] if self.curve else 0.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "growth_mb": round(self.growth_mb, 2)}


def soak(bench: Bench, requests: int, say: Callable[[str], None]) -> Soak:
    """Send so many requests in slices: each tenth is a stream, and each second stream is hung up on."""
    result = Soak()
    with ExitStack() as stack:
        _, engine_port = stack.enter_context(bench.engine(first_us=1_000, gap_us=GAP_US))
        process, port, how = stack.enter_context(bench.subject("citadel", engine_port))
        load = bench.load(port, key=how.key, events=30)
        result.rss_before_mb, result.open_files_before = process.rss_mb(), process.open_files()
        began = time.monotonic()
        done = 0
        for number in range(1, SLICES + 1):
            due = requests * number // SLICES
            mix = {"stream_every": STREAM_EVERY, "hangup_every": HANGUP_EVERY, "hangup_after": 3}
            outcome = load.run(64, 120, requests=due - done, **mix)
            done = due
            result.requests += outcome.started
            result.failed += outcome.failed
            result.streams_hung_up += outcome.hung_up
            result.curve.append((done, round(process.rss_mb(), 2)))
        result.took_s = round(time.monotonic() - began, 2)
        wait_for(lambda: process.open_files() <= result.open_files_before, SETTLE_S, 0.25)
        result.open_files_after = process.open_files()
        stats = _stats(engine_port)
        result.streams_cut_at_engine, result.still_busy_at_engine = stats["cut"], stats["busy"]
    say(f"soak: {result.requests:,} requests, {result.growth_mb:+.1f} MB, {result.failed} failed")
    return result


def _stats(port: int) -> dict[str, int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=5) as response:
        found: dict[str, int] = json.loads(response.read())
        return found
