"""From a request's `Authorization` header to whoever sent it."""

from __future__ import annotations

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.principal import Principal
from citadel_llm.utils.keys import KeyRing

__all__ = ["Authenticator"]

_MAX_KEY_BYTES = 512


class Authenticator:
    """Knows the keys of a file; each of them may do everything."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._known: dict[str, Principal] = {}

    def __len__(self) -> int:
        return len(self._ring)

    def identify(self, authorization: bytes | None) -> Principal:
        """Whose key an `Authorization` header has. Raises ApiError 401."""
        if authorization is None:
            raise _refused("No API key was given. Send it as `Authorization: Bearer KEY`.", "missing_api_key")
        key = authorization[7:].strip()
        if authorization[:7].lower() != b"bearer " or not key or len(key) > _MAX_KEY_BYTES:
            raise _refused("The Authorization header is not of the form `Bearer KEY`.", "invalid_api_key")
        name = self._ring.name_of(key)
        if name is None:
            raise _refused("The API key is not known here. Ask the operator of this server for one.", "invalid_api_key")
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = Principal(name, name, key_name=name, unbounded=True)
        return found


def _refused(message: str, code: str) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])
