"""How a row of the audit log is bound to the one before it, and how it is seen that none was changed or is missing.

    digest = SHA-256(previous digest + canonical(chain, position, row))

The canonical text of a row is a JSON list of its columns, which the row in the database gives again exactly: points in
time in microseconds, what PostgreSQL keeps as `real` rounded so, an address as its bytes, an object with sorted names.
The first row of a chain follows 32 zero bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Any, NamedTuple

import msgspec

__all__ = [
    "BEGIN",
    "COLUMNS",
    "Row",
    "address_of",
    "copy_line",
    "digest_of",
    "json_text",
    "narrowed",
    "row_id",
    "stored",
]

BEGIN = bytes(32)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_float = Struct("<f")
_encode = msgspec.json.Encoder().encode
_sorted = msgspec.json.Encoder(order="deterministic").encode


class Row(NamedTuple):
    """A row without its place: columns of `llm.audit_log`, each as its canonical text wants it."""

    at_us: int
    id: str
    kind: str
    action: str
    request_id: str
    user_id: str | None = None
    user_name: str | None = None
    key_id: str | None = None
    key_name: str | None = None
    model: str | None = None
    served_by: str | None = None
    outcome: str = "ok"
    status: int | None = None
    error_code: str | None = None
    streamed: bool | None = None
    cached: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_ms: float | None = None
    latency_ms: float | None = None
    client_address: str | None = None
    content_policy: str = "none"
    content: str | None = None  # JSON text
    detail: str | None = None  # JSON text


COLUMNS = ("at", *Row._fields[1:])


def digest_of(previous: bytes, chain: str, position: int, row: Row) -> bytes:
    """The row's digest, 32 bytes."""
    return hashlib.sha256(previous + _encode((chain, position, *row))).digest()


def row_id(chain: str, sequence: int, what: str = "") -> str:
    """The id of a row, a UUID of version 8: the same one each time for what was written under that number."""
    found = hashlib.sha256(f"{chain}/{sequence}/{what}".encode()).hexdigest()
    return f"{found[:8]}-{found[8:12]}-8{found[13:16]}-a{found[17:20]}-{found[20:32]}"


def narrowed(value: float | None) -> float | None:
    """As PostgreSQL's `real` keeps it."""
    if value is None or not math.isfinite(value):
        return None
    rounded: float = _float.unpack(_float.pack(value))[0]
    return rounded


@lru_cache(4096)
def address_of(text: str | None) -> str | None:
    """An address as PostgreSQL takes it; None where it is none, such as a socket's path."""
    if not text:
        return None
    try:
        return _shown(ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def _shown(address: IPv4Address | IPv6Address) -> str:
    # Pythons differ in how they write an IPv4 address that is mapped into IPv6: in groups it is the same in all.
    return address.exploded if address.version == 6 else str(address)


def json_text(value: Mapping[str, Any] | None) -> str | None:
    """An object as canonical JSON, which `jsonb` gives again. Raises TypeError for what JSON can't say."""
    return None if value is None else _sorted(_plain(value)).decode()


def _plain(value: Any) -> Any:
    """What `jsonb` takes and gives back: no NUL, no halves of surrogate pairs, whole numbers as such."""
    match value:
        case str():
            return value.replace("\x00", "�").encode("utf-8", "replace").decode()
        case bool() | None | int():
            return value
        case float():
            return (int(value) if value.is_integer() else value) if math.isfinite(value) else str(value)
        case Mapping():
            return {_plain(str(name)): _plain(entry) for name, entry in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(entry) for entry in value]
        case _:
            return _plain(str(value))


def stored(values: tuple[Any, ...]) -> Row:
    """A row as psycopg reads COLUMNS from the database, canonical again."""
    at, identity, *rest = values
    row = Row((at - _EPOCH) // _MICROSECOND, str(identity), *rest)
    return row._replace(
        user_id=None if row.user_id is None else str(row.user_id),
        key_id=None if row.key_id is None else str(row.key_id),
        first_token_ms=narrowed(row.first_token_ms),
        latency_ms=narrowed(row.latency_ms),
        client_address=None if row.client_address is None else address_of(str(row.client_address)),
        content=json_text(row.content),  # type: ignore[arg-type]
        detail=json_text(row.detail),  # type: ignore[arg-type]
    )


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL, _TABS = "\\N", len(COLUMNS) - 2


def _field(value: Any) -> str:
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if value is True or value is False:
        return "t" if value else "f"
    return _NULL if value is None else repr(value)


def copy_line(chain: str, position: int, previous: bytes, digest: bytes, row: Row) -> str:
    """The row for COPY's text format: chain, position, previous digest, digest, then COLUMNS."""
    values = row[1:]
    fields = "\t".join([v if v.__class__ is str else _NULL if v is None else _field(v) for v in values])
    # Hardly ever is there anything to escape: looking at the whole takes less than looking at each.
    if (
        fields.count("\t") != _TABS
        or fields.count("\\") != sum([v is None for v in values])
        or "\n" in fields
        or "\r" in fields
    ):
        fields = "\t".join(map(_field, values))
    second, us = divmod(row.at_us, 1_000_000)
    at = f"{_second(second)}.{us:06}+00:00"
    return f"{_field(chain)}\t{position}\t\\\\x{previous.hex()}\t\\\\x{digest.hex()}\t{at}\t{fields}\n"


@lru_cache(64)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).isoformat().removesuffix("+00:00")
