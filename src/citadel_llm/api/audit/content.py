"""Prompts and answers in the audit log, by the site's policy: none of them, keyed digests, or redacted texts.

    content = Content(config.audit)
    kept = content.keep(call, body)      # goes between the handler and the caller
    ...
    content.of(kept)                     # when the answer is known

A stream's text is put together from its events before it is redacted: a key that came in two pieces is one.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import orjson

from citadel_llm.api.audit.redaction import Redaction
from citadel_llm.api.call import Call
from citadel_llm.api.errors import Headers
from citadel_llm.utils.config import Audit, ConfigError

__all__ = ["Content", "Kept"]

_MIN_KEY_BYTES = 16
_EDGE = 4096  # of a text that is cut
_MEMBER = 4  # what an entry costs beside its text, about
_MOST = 4 << 20  # of an answer, whatever the policy keeps of it: more is not looked at


class Kept:
    """A call whose body and answer are noted as they pass; implements `Call`."""

    def __init__(self, call: Call, body: bytes, digest: hmac.HMAC | None) -> None:
        self._call = call
        self.headers: Headers = call.headers
        self.client = call.client
        self.exchange = call.exchange
        self.before_end = call.before_end
        self.request = body
        self.answer = bytearray()
        self.cut = False
        self.digest = digest

    def _note(self, data: bytes) -> None:
        if self.digest is not None:
            self.digest.update(data)
        elif len(self.answer) < _MOST:
            self.answer += data
        else:
            self.cut = True

    async def body(self, limit: int) -> bytes:
        """See `Call`."""
        return self.request

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Reply`."""
        self._note(body)
        await self._call.whole(status, headers, body)

    async def start(self, status: int, headers: Headers) -> None:
        """See `Reply`."""
        await self._call.start(status, headers)

    async def piece(self, data: bytes) -> None:
        """See `Reply`."""
        self._note(data)
        await self._call.piece(data)

    async def end(self, data: bytes = b"") -> None:
        """See `Reply`."""
        if data:
            self._note(data)
        await self._call.end(data)


class Content:
    """The policy."""

    def __init__(self, config: Audit) -> None:
        """Raises ConfigError where the key can't be read."""
        self.policy = config.content
        self._bytes = config.content_bytes
        self._redaction = Redaction(config.redact)
        self._key = b""
        if config.content == "hash" and config.hash_key_file is not None:
            try:
                self._key = Path(config.hash_key_file).read_bytes().strip()
            except OSError as error:
                raise ConfigError(f"{config.hash_key_file}: can't be read: {error.strerror}") from error
            if len(self._key) < _MIN_KEY_BYTES:
                raise ConfigError(f"{config.hash_key_file}: expected {_MIN_KEY_BYTES} bytes or more")

    def keep(self, call: Call, body: bytes) -> Kept:
        """The call, noted from now on."""
        return Kept(call, body, self._hmac() if self.policy == "hash" else None)

    def _hmac(self, data: bytes | None = None) -> hmac.HMAC:
        return hmac.new(self._key, data, hashlib.sha256)

    def of(self, kept: Kept) -> dict[str, Any]:
        """What the record holds of it."""
        if kept.digest is not None:
            return {
                "request_hmac_sha256": self._hmac(kept.request).hexdigest(),
                "answer_hmac_sha256": kept.digest.hexdigest(),
            }
        request, cut = self._shown(_parsed(kept.request))
        answer, answer_cut = self._shown(_answer(bytes(kept.answer)))
        found = {"request": request, "answer": answer}
        if cut or answer_cut or kept.cut:
            found["truncated"] = True
        return found

    def _shown(self, value: Any) -> tuple[Any, bool]:
        """Redacted, and within the bound: as the JSON that it is, or the beginning of its text."""
        # What will not be kept is not looked at. The edge of what was is not kept: half a key looks like none.
        room = _Room(self._bytes + _EDGE)
        redacted = self._redaction.value(room.take(value))
        text = redacted if isinstance(redacted, str) else orjson.dumps(redacted).decode()
        data = text.encode("utf-8", "replace")
        most = min(self._bytes, len(data) - _EDGE) if room.left < 0 else self._bytes
        if room.left >= 0 and len(data) <= most:
            return redacted, False
        return data[: max(0, most)].decode("utf-8", "ignore"), True


class _Room:
    """So many characters of a value's texts, from its beginning on."""

    def __init__(self, characters: int) -> None:
        self.left = characters  # below 0: there was more

    def take(self, value: Any) -> Any:
        """The value, as far as there is room."""
        match value:
            case str():
                taken = value[: max(0, self.left)]
                self.left -= len(value)
                return taken
            case dict():
                taken_items = {}
                for name, entry in value.items():
                    if self.left < 0:
                        break
                    self.left -= len(name) + _MEMBER
                    taken_items[name] = self.take(entry)
                return taken_items
            case list():
                taken_list = []
                for entry in value:
                    if self.left < 0:
                        break
                    self.left -= _MEMBER
                    taken_list.append(self.take(entry))
                return taken_list
            case _:
                return value


def _parsed(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def _answer(data: bytes) -> Any:
    """A whole answer's JSON; of a stream, the text that its events make together."""
    if not data.lstrip().startswith((b"data:", b"event:", b":")):
        return _parsed(data)
    pieces = []
    for line in data.split(b"\n"):
        if line.startswith(b"data: {"):
            event = _parsed(line[6:])
            if isinstance(event, dict):
                pieces += _texts(event)
    return "".join(pieces)


def _texts(event: dict[str, Any]) -> list[str]:
    """The pieces of text that an event of a stream adds, in each shape that the endpoints have for it."""
    if "error" in event:
        return [orjson.dumps(event["error"]).decode()]
    found: list[Any] = [event.get("delta")]  # responses; messages have an object there
    for choice in event.get("choices") or ():
        if isinstance(choice, dict):
            found += [choice.get("text"), choice.get("delta")]
    texts = []
    for part in found:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            texts += _of_delta(part)
    return texts


def _of_delta(delta: dict[str, Any]) -> list[str]:
    names = ("reasoning_content", "reasoning", "content", "text", "thinking", "partial_json")
    texts = [delta[name] for name in names if isinstance(delta.get(name), str)]
    for call in delta.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts += [part for part in (function.get("name"), function.get("arguments")) if isinstance(part, str)]
    return texts
