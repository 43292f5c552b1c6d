"""Who may ask: whoever has the API key."""

from __future__ import annotations

import hmac
from collections.abc import Mapping


class Access:
    """The key, compared in a time that does not tell how much of it was right."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def refusal(self, headers: Mapping[str, str]) -> str | None:
        """Why a caller with these headers (names in lower case) is not let in; None for one who is."""
        given = headers.get("api-key")
        if given is None:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = token if scheme.lower() == "bearer" else None
        if not given:
            return "Must provide an API key or an Authorization bearer token"
        if not hmac.compare_digest(given.encode(), self._key):
            return "Invalid API key or JWT"
        return None
