"""Passive ejection: a replica that fails several times in a row, while others answer, is left out for a while.

It differs from the breaker, which looks at one replica alone and closes the way to the last one too:
ejection compares. It never takes the last replica, nor more than a share of them, and when all the
others have gone, those it took come back at once (`ServedModel.refresh`).
"""

from __future__ import annotations

from collections.abc import Callable

from citadel_llm.utils.config import Ejection

__all__ = ["Outlier", "may_eject"]


def may_eject(config: Ejection, replicas: int, ejected: int, others: int) -> bool:
    """Whether one more of `replicas` may be left out, `ejected` being out and `others` able to answer."""
    return others >= 1 and ejected + 1 <= max(1, int(config.max_share * replicas))


class Outlier:
    """One replica's record."""

    __slots__ = ("_clock", "_config", "_ended", "_times", "streak", "until")

    def __init__(self, config: Ejection, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._times = 0
        self._ended = 0.0
        self.streak = 0  # failures in a row
        self.until = 0.0  # ejected until then; 0 where it is not

    def failed(self) -> bool:
        """Note a failure; True where the replica is to be ejected, if it may."""
        self.streak += 1
        return self.streak >= self._config.failures and not self.until

    def eject(self) -> float:
        """Leave the replica out from now on; the result is for how many seconds."""
        config, now = self._config, self._clock()
        if now - self._ended > config.max_s:
            self._times = 0
        pause_s = min(config.max_s, config.base_s * 2.0 ** min(self._times, 32))
        self._times += 1
        self.streak = 0
        self.until = self._ended = now + pause_s
        return pause_s

    def tick(self) -> bool:
        """True where an ejection has just ended."""
        if self.until and self._clock() >= self.until:
            self.until = 0.0
            return True
        return False

    def end(self) -> None:
        """Take the replica back now: it is a new process, or there is no other any more."""
        self.streak = 0
        self.until = 0.0
