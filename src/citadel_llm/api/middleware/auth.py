"""From a request's headers to whoever sent it.

A request has one `Authorization` header, or `x-api-key` where it has none; two of one kind are refused, since who
sits in front of the gateway may have looked at the other one.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from citadel_llm.api.errors import ApiError, Headers
from citadel_llm.api.identity.principal import Principal
from citadel_llm.utils.keys import KeyRing, digest_of
from citadel_llm.utils.outcomes import UnknownCaller

if TYPE_CHECKING:
    from citadel_llm.api.identity.keeper import Keeper
    from citadel_llm.api.identity.passwords import Passwords

__all__ = ["TWICE", "Authenticator", "credentials_of"]

_MAX_KEY_BYTES = 512
TWICE = b"\0"  # in the place of a header that came more than once
_NO_KEYS = KeyRing([])


def credentials_of(headers: Headers) -> bytes | None:
    """What a request with these headers calls by, as its `Authorization` header would have it."""
    authorization: bytes | None = None
    api_key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            authorization = value if authorization is None else TWICE
        elif name == b"x-api-key":
            api_key = b"Bearer " + value if api_key is None else TWICE
    return api_key if authorization is None else authorization


class Authenticator:
    """Knows the keys of a file, each of which may do everything, and the keys and users of a directory."""

    def __init__(
        self,
        ring: KeyRing = _NO_KEYS,
        *,
        keeper: Keeper | None = None,
        pepper: bytes = b"",
        passwords: Passwords | None = None,
    ) -> None:
        self.ring = ring
        self._keeper = keeper
        self.pepper = pepper
        self._passwords = passwords
        self._known: dict[str, Principal] = {}

    def __len__(self) -> int:
        """How many keys there are."""
        directory = self._keeper.directory if self._keeper is not None else None
        return len(self.ring) + (len(directory) if directory is not None else 0)

    def identify(self, authorization: bytes | None) -> Principal | None:
        """Whose key an `Authorization` header has; None for a password that `verify` is to look at. Raises ApiError."""
        if authorization is None:
            raise _refused("No API key was given. Send it as `Authorization: Bearer KEY`.", "missing_api_key")
        scheme = authorization[:7].lower()
        if scheme != b"bearer ":
            if scheme.startswith(b"basic ") and self._passwords is not None:
                self._ready()
                return self._passwords.known(authorization[6:])
            raise _malformed(authorization)
        key = authorization[7:].strip()
        if not key or len(key) > _MAX_KEY_BYTES:
            raise _malformed(authorization)
        if (name := self.ring.name_of(key)) is not None:
            return self._known.get(name) or self._of_the_file(name)
        if self._keeper is not None:
            directory = self._keeper.directory
            if directory is None:
                raise _unready()
            found = directory.key(digest_of(key, self.pepper))
            if found is not None:
                if found.expires_at <= time():
                    raise _refused("The API key has expired. Ask for another.", "expired_api_key")
                return found
        raise _refused("The API key is not known here. Ask the operator of this server for one.", "invalid_api_key")

    async def verify(self, authorization: bytes, address: str | None) -> Principal:
        """Whose password an `Authorization: Basic` header has. Raises ApiError."""
        if self._passwords is None:
            raise _malformed(authorization)
        return await self._passwords.verify(authorization[6:], address)

    def _ready(self) -> None:
        if self._keeper is not None and self._keeper.directory is None:
            raise _unready()

    def _of_the_file(self, name: str) -> Principal:
        found = self._known[name] = Principal(name, name, key_name=name, unbounded=True, group="admin")
        return found


def _malformed(authorization: bytes) -> ApiError:
    if authorization == TWICE:
        return _refused("The request has more than one key. Send one.", "invalid_api_key")
    return _refused("The Authorization header is not of the form `Bearer KEY`.", "invalid_api_key")


def _unready() -> ApiError:
    return ApiError(
        503,
        "identity_unavailable",
        "Who may call is not known yet: the database has not answered since this instance started. Try again.",
        retry_after_s=2,
    )


def _refused(message: str, code: UnknownCaller) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])
