"""Bearer keys."""

from __future__ import annotations

from citadel_llm.api.errors import ApiError
from citadel_llm.utils.keys import KeyRing

__all__ = ["authenticate"]

_MAX_KEY_BYTES = 512


def authenticate(keys: KeyRing, authorization: bytes | None) -> str:
    """The name that goes with the key in an `Authorization` header. Raises ApiError 401."""
    if authorization is None:
        raise _refused("No API key was given. Send it as `Authorization: Bearer KEY`.", "missing_api_key")
    key = authorization[7:].strip()
    if authorization[:7].lower() != b"bearer " or not key or len(key) > _MAX_KEY_BYTES:
        raise _refused("The Authorization header is not of the form `Bearer KEY`.", "invalid_api_key")
    name = keys.name_of(key)
    if name is None:
        raise _refused("The API key is not known here. Ask the operator of this server for one.", "invalid_api_key")
    return name


def _refused(message: str, code: str) -> ApiError:
    return ApiError(401, code, message, headers=[(b"www-authenticate", b"Bearer")])
