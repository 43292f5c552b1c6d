"""One request in flight: its identity, what is known of it so far, and what may interrupt it.

A sweeper looks at all exchanges ten times a second instead of a timer and a task for each:
that costs a short request nothing, and a long one at most a tenth of a second of delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from citadel_llm.api.audit.content import Kept
from citadel_llm.api.call import CallerGone
from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits.plan import Charge
from citadel_llm.api.routing.explain import Explanation
from citadel_llm.api.tracing.context import Trace
from citadel_llm.utils.config import Timeouts

__all__ = ["Exchange", "Overdue", "Phase", "Sweeper"]

SWEEP_S = 0.1


class Overdue(ApiError):
    """A phase took too long: an answer for the caller, and news of the engine where it was the engine's phase."""

    phase = ""


class Phase:
    """What an exchange waits for, as its time limit and its log line name it."""

    BODY = "body"
    QUEUE = "queue"
    CONNECT = "connect"
    RETRY = "retry"
    FIRST_BYTE = "first_byte"
    CHUNK = "chunk"
    CALLER = "caller"


class Exchange:
    """The record of one request. Everything that its handler awaits can be interrupted through it."""

    # What most requests leave as it is costs them nothing here.
    deadline_ms = 0  # the caller's own, if it set one that is shorter than ours
    failure: Exception | None = None
    caller = ""
    principal: Principal | None = None  # none yet: who asks is not known
    error: Exception | None = None  # why it failed, where it did
    finished = False  # it was counted and written down
    kept: Kept | None = None  # what was asked and answered, where the audit log holds that
    model = ""
    engine = ""
    cache = "bypass"  # what came of looking for a kept answer
    status = 0
    started = False
    stream = False
    takes_events = False  # an error can still be told, as the last event of the stream
    retries = 0
    fallback_from = ""  # the model that was asked for, where another one answers
    explanation: Explanation | None = None  # where the caller asked for one
    sent_at = 0.0
    given_id = False  # the caller chose the request's id
    first_token_at = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_estimated = False  # it broke off before the engine said how many tokens there were
    hides_usage = False  # the engine is asked for the tokens of a stream, and the caller did not ask
    events = 0  # of its stream, that went out
    charge: Charge | None = None  # what it counts as, until what it really used is known
    trace: Trace | None = None  # which it is part of
    rate_limits: Headers | tuple[()] = ()  # what its caller has left, as headers
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, request_id: str, began: float, timeouts: Timeouts) -> None:
        self.request_id = request_id
        self.began = began
        self.phase = Phase.BODY
        self.deadline = began + timeouts.body_s
        self.last_call = began + timeouts.total_s
        self._task = asyncio.current_task()

    def notes(self) -> Headers:
        """The headers that tell of another model's answering, and of the decision where that was asked for."""
        found: Headers = []
        if self.fallback_from:
            found.append((b"x-citadel-fallback", b"from=" + self.fallback_from.encode("ascii")))
        if self.explanation is not None:
            found.append((b"x-citadel-route", self.explanation.header()))
        return found

    def detached(self, timeouts: Timeouts) -> Exchange:
        """The same request, for work in the current task that may outlive its caller."""
        other = Exchange(self.request_id, monotonic(), timeouts)
        other.caller, other.principal = self.caller, self.principal
        other.model, other.stream = self.model, self.stream
        other.given_id = self.given_id
        other.trace = self.trace
        return other

    def expect(self, phase: str, deadline: float) -> None:
        """From now on wait for `phase`, until `deadline` on the monotonic clock."""
        self.phase = phase
        self.deadline = deadline

    def limit(self, deadline_ms: int) -> None:
        """The whole request may take `deadline_ms` from its beginning; a timer of its own makes that exact."""
        end = self.began + deadline_ms / 1e3
        if end < self.last_call:
            self.deadline_ms = deadline_ms
            self.last_call = end
            self._timer = asyncio.get_running_loop().call_later(
                end - monotonic(), self.interrupt, _past_deadline(deadline_ms)
            )

    def interrupt(self, failure: Exception) -> None:
        """Make the handler's current await fail; the handler then finds `failure`."""
        if self.failure is None and self._task is not None:
            self.failure = failure
            self._task.cancel()

    def recovered(self) -> Exception | None:
        """Called by the handler on CancelledError: the interruption's cause, or None if it was a true cancel."""
        if self.failure is not None and self._task is not None:
            self._task.uncancel()
        return self.failure

    def forgive(self) -> None:
        """Go on after an interruption: what was too slow is given up, not the request."""
        self.failure = None
        if self._task is not None:
            self._task.uncancel()

    def close(self) -> None:
        """It is over: its timer must not go off any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _past_deadline(deadline_ms: int) -> ApiError:
    return ApiError(504, "deadline_exceeded", f"The request's deadline of {deadline_ms} ms has passed.")


_TIMEOUTS = {
    Phase.BODY: (408, "request_timeout", "The request's body did not arrive in time."),
    Phase.QUEUE: (503, "queue_timeout", "The model is busy: no place became free in time. Try again later."),
    Phase.CONNECT: (503, "model_unavailable", "The model's engine could not be reached in time."),
    Phase.RETRY: (503, "model_unavailable", "The model's engine could not be reached in time."),
    Phase.FIRST_BYTE: (504, "upstream_timeout", "The model did not begin to answer in time."),
    Phase.CHUNK: (504, "upstream_timeout", "The model stopped in the middle of its answer."),
}


class Sweeper:
    """Interrupts exchanges that are past their deadline, and watches the callers of long ones."""

    def __init__(self, retry_after_s: int, on_tick: Callable[[], None]) -> None:
        self._retry_after_s = retry_after_s
        self._on_tick = on_tick
        self.active: set[Exchange] = set()  # what it looks after
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to sweep."""
        self._loop = loop
        self._timer = loop.call_later(SWEEP_S, self._sweep)

    def stop(self) -> None:
        """End sweeping."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        return len(self.active)

    def _sweep(self) -> None:
        if self._loop is None:
            return
        now = monotonic()
        for exchange in tuple(self.active):
            if now >= exchange.deadline or now >= exchange.last_call:
                exchange.interrupt(self._overdue(exchange, now))
        self._on_tick()
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def _overdue(self, exchange: Exchange, now: float) -> Exception:
        if exchange.phase == Phase.CALLER:
            return CallerGone("the caller takes nothing any more")
        if now >= exchange.last_call:
            if exchange.deadline_ms:
                return _past_deadline(exchange.deadline_ms)
            return ApiError(504, "request_timeout", "The request took longer than this server allows.")
        status, code, message = _TIMEOUTS[exchange.phase]
        overdue = Overdue(status, code, message, retry_after_s=self._retry_after_s if status == 503 else None)
        overdue.phase = exchange.phase
        return overdue
