"""One request in flight: its identity, what is known of it so far, and what may interrupt it.

A sweeper looks at all exchanges ten times a second instead of a timer and a task for each:
that costs a short request nothing, and a long one at most a tenth of a second of delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec

from citadel_llm.api.audit.content import Kept
from citadel_llm.api.call import CallerGone
from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits.plan import Charge
from citadel_llm.api.middleware.correlation import new_request_id
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


class Exchange(msgspec.Struct, eq=False):
    """The record of one request. Everything that its handler awaits can be interrupted through it.

    It is a struct, for that is made sooner than an object with as many slots; and a default of any other class makes
    each look at the attribute, and each change, a slow one. Use `begin`.
    """

    request_id: str
    given_id: bool  # the caller chose it
    lines: bytes  # of any answer's head: its id and, once that is known, what its caller has left
    began: float
    deadline: float
    last_call: float
    _task: asyncio.Task[Any] | None
    phase: str = Phase.BODY
    deadline_ms: int = 0  # the caller's own, if it set one that is shorter than ours
    failure: Exception | None = None
    error: Exception | None = None  # why it failed, where it did
    finished: bool = False  # what it used is settled, and it is written down
    took: float = 0.0  # seconds, once it is finished
    caller: str = ""
    principal: Principal | None = None  # none yet: who asks is not known
    model: str = ""
    engine: str = ""
    fallback_from: str = ""  # the model that was asked for, where another one answers
    explanation: Explanation | None = None  # where the caller asked for one
    trace: Trace | None = None  # which it is part of
    kept: Kept | None = None  # what was asked and answered, where the audit log holds that
    cache: str = "bypass"  # what came of looking for a kept answer
    status: int = 0
    retries: int = 0
    started: bool = False
    stream: bool = False
    takes_events: bool = False  # an error can still be told, as the last event of the stream
    sent_at: float = 0.0
    first_token_at: float = 0.0
    events: int = 0  # of its stream, that went out
    hides_usage: bool = False  # the engine is asked for the tokens of a stream, and the caller did not ask
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_estimated: bool = False  # it broke off before the engine said how many tokens there were
    charge: Charge | None = None  # what it counts as, until what it really used is known
    _timer: asyncio.TimerHandle | None = None

    @classmethod
    def begin(cls, request_id: str | None, timeouts: Timeouts) -> Exchange:
        """In the current task, now; with an id of its own where there is none."""
        now = monotonic()
        name = request_id or new_request_id()
        lines = f"x-request-id: {name}\r\n".encode()
        return cls(
            name,
            request_id is not None,
            lines,
            now,
            now + timeouts.body_s,
            now + timeouts.total_s,
            asyncio.current_task(),
        )

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
        other = Exchange.begin(self.request_id, timeouts)
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
        self._timer = self._loop.call_later(SWEEP_S, self._sweep)  # first: whatever fails below, it goes on
        now = monotonic()
        for exchange in tuple(self.active):
            if now >= exchange.deadline or now >= exchange.last_call:
                exchange.interrupt(self._overdue(exchange, now))
        self._on_tick()

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
