"""Answers kept in Redis, found again by an exact match of the request.

    plan = cache.plan(caller, path, model, version, body, headers)
    if plan is not None and plan.read and (stored := await cache.get(plan.key)):
        ...                                  # the very bytes that were sent before, in the same pieces
    cache.put(plan.key, Stored.of(...))      # not awaited

**The key** is an HMAC over the caller's name, the path, the model that answers, its version and the canonical
request; who may list Redis's keys can't test guesses of a prompt on them. Callers never see each other's answers.

**The canonical request** is the parsed body, keys sorted, without the fields in `IGNORED`, which change nothing in an
answer; `model` is what it resolved to, and `stream` is true or false. Everything else counts, also what this module
does not know. `stream_options`, `cache_salt` and `request_id` (of vLLM) stay, since they show in an answer or ask for
separation. A plain answer is replayed to plain requests, a stream to streamed ones: never one for the other.

**Which requests**: those whose answer is determined by them, that is `temperature` 0 or a `seed`, and that name no
remote image, sound or film, which may change behind its address. `x-citadel-cache: allow` lets any other request take
part. `cache-control: no-store` keeps a request out altogether; `no-cache` (or `max-age=0`) asks for a fresh answer,
which is kept.

**Which answers**: complete ones with status 200, up to a size; a stream that holds an error, or lacks its end, is not.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterable
from time import monotonic, time
from typing import Any, NamedTuple

import msgspec

from citadel_llm.integration.cache.connection import CacheUnavailable
from citadel_llm.integration.cache.metrics import CacheMetrics, NoMetrics
from citadel_llm.integration.cache.redis import Redis

__all__ = ["IGNORED", "Plan", "ResponseCache", "Stored", "allowed", "complete", "deterministic"]

IGNORED = frozenset(
    {
        "metadata",  # kept with the request by who keeps it, never read by a model
        "priority",  # when, not what
        "prompt_cache_key",  # where, not what
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

_FORM = 1  # of what is stored; another number finds nothing that was stored before
_REMOTE = ("image_url", "audio_url", "video_url")


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """An answer with status 200."""

    form: int
    created: int  # Unix seconds
    content_type: bytes
    pieces: list[bytes]  # of the body, as they were sent

    @classmethod
    def of(cls, content_type: bytes, pieces: list[bytes], clock: Callable[[], float] = time) -> Stored:
        """An answer of now."""
        return cls(_FORM, int(clock()), content_type, pieces)


_encoder = msgspec.msgpack.Encoder()
_sorted = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(Stored)


class _Choices(msgspec.Struct):
    choices: list[msgspec.Raw]


_choices = msgspec.json.Decoder(_Choices)


class Plan(NamedTuple):
    """What the cache is to do for a request."""

    key: bytes
    read: bool  # an answer may come from the cache, or from another request under way


def deterministic(temperature: Any, seed: Any) -> bool:
    """Whether these fields of a request determine its answer; they may hold anything that JSON can."""
    kind = type(temperature)
    return ((kind is float or kind is int) and temperature == 0) or type(seed) is int


def allowed(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the caller lets an answer that its request does not determine come from the cache."""
    for name, value in headers:  # noqa: SIM110 — a generator costs twice as much, and every request comes by here
        if name == b"x-citadel-cache" and value == b"allow":
            return True
    return False


def complete(pieces: list[bytes], *, stream: bool) -> bool:
    """Whether a body of status 200 is a whole answer without an error."""
    if not stream:
        try:
            return bool(_choices.decode(b"".join(pieces)).choices)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return False
    body = b"".join(pieces)
    return body.endswith((b"data: [DONE]\n\n", b"data: [DONE]\r\n\r\n")) and b'data: {"error"' not in body


class ResponseCache:
    """The cache of one process, over a Redis that others share."""

    def __init__(
        self,
        redis: Redis,
        *,
        ttl_s: float,
        max_answer_bytes: int,
        prefix: str = "citadel:answer:",
        metrics: CacheMetrics | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self.redis = redis
        self.max_answer_bytes = max_answer_bytes
        self.metrics: CacheMetrics = metrics or NoMetrics()
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._prefix = prefix.encode("ascii")
        self._clock = clock

    def plan(
        self, caller: str, path: str, model: str, version: str, body: bytes, headers: Iterable[tuple[bytes, bytes]]
    ) -> Plan | None:
        """What to do for a request that `deterministic` or `allowed` let in; None: nothing."""
        credentials = self.redis.credentials
        if credentials is None or not self.redis.up:
            return None
        read, opted_in = True, False
        for name, value in headers:
            if name == b"cache-control":
                wishes = {wish.strip() for wish in value.lower().split(b",")}
                if b"no-store" in wishes:
                    return None
                if b"no-cache" in wishes or b"max-age=0" in wishes:
                    read = False
            elif name == b"x-citadel-cache" and value == b"allow":
                opted_in = True
        try:
            request = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # the look that let it in saw less
            return None
        if not isinstance(request, dict) or (_names_remote(request) and not opted_in):
            return None
        canonical = {field: value for field, value in request.items() if field not in IGNORED}
        canonical["model"] = model
        canonical["stream"] = bool(canonical.get("stream"))
        try:
            # A tagged form: no two different requests are the same bytes. Integers have at most 64 bits in it.
            text = _sorted.encode([_FORM, caller, path, model, version, canonical])
        except OverflowError:
            return None
        digest = hmac.digest(credentials.password.encode(), text, "sha256").hex()
        return Plan(self._prefix + digest.encode("ascii"), read)

    async def get(self, key: bytes) -> Stored | None:
        """The answer of that key, if there is one and Redis gives it in time."""
        began = monotonic()
        try:
            value = await self.redis.call(b"GET", key)
        except CacheUnavailable:
            self.metrics.failed("get")
            return None
        self.metrics.looked_up(monotonic() - began)
        if value is None:
            return None
        try:
            stored = _decoder.decode(value)
        except msgspec.MsgspecError:
            return None
        return stored if stored.form == _FORM and stored.pieces else None

    def put(self, key: bytes, content_type: bytes, pieces: list[bytes]) -> None:
        """Keep an answer, if Redis will have it; nobody waits for that."""
        value = _encoder.encode(Stored.of(content_type, pieces, self._clock))
        if len(value) > self.max_answer_bytes:
            return
        try:
            done = self.redis.call(b"SET", key, value, b"PX", self._ttl_ms)
        except CacheUnavailable:
            self.metrics.failed("set")
            return
        size = len(value)
        done.add_done_callback(lambda future: self._kept(future, size))

    def _kept(self, done: asyncio.Future[Any], size: int) -> None:
        if done.cancelled() or done.exception() is not None:
            self.metrics.failed("set")
        else:
            self.metrics.stored(size)


def _names_remote(request: dict[str, Any]) -> bool:
    """Whether a message has a part that lies at an address of the network."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        return False
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            continue
        for part in content:
            if not isinstance(part, dict):
                continue
            for kind in _REMOTE:
                given = part.get(kind)
                address = given.get("url") if isinstance(given, dict) else given
                if given is not None and not (isinstance(address, str) and address.startswith("data:")):
                    return True
    return False
