"""What callers thought of answers: one opinion a user and request, which another one replaces."""

# ruff: noqa: S608 — only constants go into the statements

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database

__all__ = ["Opinion", "Withdrawn", "delete", "page", "put"]


class Opinion(NamedTuple):
    """One of them. `rating` is 1 for a thumb up, -1 for one down; `stars` are 1 to 5."""

    request_id: str
    rating: int | None
    stars: int | None
    labels: list[str]
    comment: str
    model: str | None
    created_at: int


class Withdrawn(NamedTuple):
    """What was said before."""

    rating: int | None
    stars: int | None
    model: str | None


_COLUMNS = "request_id, rating, stars, labels, comment, model, cast(extract(epoch from created_at) as bigint)"
# One at a time of a user about a request: so that what is replaced was the one before, also amid a double click.
ALONE: Final = f"""{ON_PRIMARY}select pg_advisory_xact_lock(
  hashtextextended(cast(%(user)s as text) || ' ' || cast(%(request_id)s as text), 0))"""
# Which model it was, the audit log knows, where it has the request already; a kept response knows it too.
PUT: Final = f"""{ON_PRIMARY}with before as (
  select rating, stars, model from llm.feedback where user_id = %(user)s and request_id = %(request_id)s
)
insert into llm.feedback
  (request_id, user_id, rating, stars, labels, comment, model)
values (%(request_id)s, %(user)s, %(rating)s, %(stars)s, cast(%(labels)s as text[]), %(comment)s, coalesce(
  (select model from llm.audit_log
   where request_id = %(request_id)s and user_id = %(user)s and kind = 'request' order by at desc limit 1),
  (select model from llm.responses where user_id = %(user)s and request_id = %(request_id)s
   order by created_at desc limit 1)))
on conflict (request_id, user_id) do update set rating = excluded.rating, stars = excluded.stars,
  labels = excluded.labels, comment = excluded.comment, model = coalesce(excluded.model, feedback.model),
  created_at = now()
returning {_COLUMNS}, (select rating from before), (select stars from before), (select model from before)"""
PAGE: Final = f"""{ON_PRIMARY}select {_COLUMNS} from llm.feedback
where user_id = %(user)s and request_id > %(after)s order by request_id limit %(limit)s"""
DELETE: Final = f"""{ON_PRIMARY}delete from llm.feedback where user_id = %(user)s and request_id = %(request_id)s
returning {_COLUMNS}"""


async def put(
    database: Database,
    user_id: str,
    request_id: str,
    rating: int | None,
    stars: int | None,
    labels: Sequence[str],
    comment: str,
) -> tuple[Opinion, Withdrawn | None]:
    """Say it, in the place of what was said before; what that was."""
    values = {
        "user": user_id, "request_id": request_id, "rating": rating, "stars": stars, "labels": list(labels),
        "comment": comment,
    }  # fmt: skip
    async with database.connection() as connection:
        await connection.execute(ALONE, values)
        row = await (await connection.execute(PUT, values)).fetchone()
    assert row is not None  # noqa: S101 — a row that was put is returned
    before = Withdrawn(*row[-3:])
    return Opinion(*row[:-3]), None if before.rating is None and before.stars is None else before


async def page(database: Database, user_id: str, after: str, limit: int) -> list[Opinion]:
    """At most `limit` of the user's own, by their requests' ids, from the one named `after` on."""
    async with database.connection() as connection:
        found = await connection.execute(PAGE, {"user": user_id, "after": after, "limit": limit})
        return [Opinion(*row) for row in await found.fetchall()]


async def delete(database: Database, user_id: str, request_id: str) -> Opinion | None:
    """The one that there was, if any; it is gone now."""
    values = {"user": user_id, "request_id": request_id}
    async with database.connection() as connection:
        await connection.execute(ALONE, values)
        row = await (await connection.execute(DELETE, values)).fetchone()
    return None if row is None else Opinion(*row)
