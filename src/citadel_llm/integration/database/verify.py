"""Walks the audit log's chains, row by row: the first row that is wrong, or missing, shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

from citadel_llm.integration.database.chain import BEGIN, COLUMNS, digest_of, stored
from citadel_llm.integration.database.target import ON_PRIMARY, Target

__all__ = ["Verdict", "connect", "verify"]

FETCH = 500

# The log's own names beside those that the table of chains has: a row of a chain that it does not know is wrong. The
# distinct names are found by leaps through the index.
_CHAINS = f"""{ON_PRIMARY}
with recursive named as (
  (select chain from llm.audit_log order by chain limit 1)
  union all
  select (select chain from llm.audit_log where chain > named.chain order by chain limit 1)
  from named where named.chain is not null
)
select chain, position, digest from named full join llm.audit_chains using (chain)
where chain is not null and (cast(%(chain)s as text) is null or chain = %(chain)s) order by chain
"""  # noqa: S608 — only constants go in

_ROWS = f"""{ON_PRIMARY}
select position, previous_digest, digest, {", ".join(COLUMNS)} from llm.audit_log where chain = %s order by position
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one chain."""

    chain: str
    rows: int
    first: int | None  # its first row's position: above 1 where older rows went with the retention
    wrong_at: int | None = None  # the position where it is not as it was written
    why: str = ""


def connect(target: Target) -> psycopg.Connection[Any]:
    """A connection that reads: one view of the whole, however long that takes."""
    connection = psycopg.connect(
        host=target.host,
        port=target.port,
        dbname=target.database,
        user=target.user,
        password=target.password,
        application_name="citadel-audit",
        connect_timeout=10,
        prepare_threshold=None,
    )
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


def verify(connection: psycopg.Connection[Any], chain: str | None = None) -> Iterator[Verdict]:
    """Every chain's verdict, or that one's."""
    for name, position, digest in connection.execute(_CHAINS, {"chain": chain}).fetchall():
        yield _walk(connection, name, position, None if digest is None else bytes(digest))


def _walk(connection: psycopg.Connection[Any], chain: str, last: int | None, last_digest: bytes | None) -> Verdict:
    rows, first, position, digest = 0, None, 0, BEGIN
    with connection.cursor(name="citadel_audit_verify") as cursor:
        cursor.itersize = FETCH
        cursor.execute(_ROWS, (chain,))
        for at, previous, own, *values in cursor:
            if first is None:
                first, position = at, at - 1
                digest = bytes(previous) if at > 1 else BEGIN
            why = ""
            if at != position + 1:
                missing = at - position - 1
                why = f"rows {position + 1} to {at - 1} are missing" if missing > 0 else f"row {at} is there twice"
                return Verdict(chain, rows, first, position + 1 if missing > 0 else at, why)
            if bytes(previous) != digest:
                why = "it does not follow the row before it"
            elif digest_of(digest, chain, at, stored(tuple(values))) != bytes(own):
                why = "it is not as it was written"
            if why:
                return Verdict(chain, rows, first, at, why)
            rows, position, digest = rows + 1, at, bytes(own)
    if last is None:
        return Verdict(chain, rows, first, first, "no writer has a chain of this name")
    if rows and (position, digest) != (last, last_digest):
        why = f"rows {position + 1} to {last} are missing" if position < last else "its writer knows another last row"
        return Verdict(chain, rows, first, position + 1 if position < last else position, why)
    return Verdict(chain, rows, first)
