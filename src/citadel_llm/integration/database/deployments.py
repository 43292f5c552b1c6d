"""Which models the site has, and what has served them where and when: tables `models` and `deployments`.

Rows are never removed: what is no longer so has `retired_at`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from psycopg.types.json import Jsonb

from citadel_llm.integration.database.target import ON_PRIMARY

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Connection
    from citadel_llm.utils.config import Model

__all__ = ["Served", "is_recorded", "record"]


class Served(NamedTuple):
    """What an engine says of itself."""

    model: str
    port: int
    weights_version: str
    engine_version: str


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # as the table has it, and citadel_models
# Every instance of a host writes the same, and those of several hosts much of it: one after another.
_ALONE = f"{ON_PRIMARY}select pg_advisory_xact_lock(hashtextextended('llm.deployments', 0))"
_FACTS = "display_name, kind, owned_by, repository, revision, max_tokens, metadata"
_PUT_MODEL = f"""
insert into llm.models as m (name, {_FACTS}) values (%s, %s, %s, %s, %s, %s, %s, %s)
on conflict (name) do update set (updated_at, retired_at, {_FACTS}) = (now(), null, {
    ", ".join(f"excluded.{name}" for name in _FACTS.split(", "))
})
where m.retired_at is not null or ({", ".join(f"m.{name}" for name in _FACTS.split(", "))})
is distinct from ({", ".join(f"excluded.{name}" for name in _FACTS.split(", "))})
"""  # noqa: S608 — only constants go in
_RETIRE_MODELS = "update llm.models set retired_at = now() where retired_at is null and name <> all(%s)"
_RETIRE_PORTS = """
update llm.deployments set retired_at = now() where host = %s and retired_at is null and port <> all(%s)
"""
_RETIRE_OTHER = """
update llm.deployments set retired_at = now() where host = %s and port = %s and retired_at is null
and (model, weights_version, engine_version) is distinct from (%s, %s, %s)
"""
_ADD = """
insert into llm.deployments (model, host, port, weights_version, engine_version, release)
values (%s, %s, %s, %s, %s, %s)
on conflict (host, port) where retired_at is null do nothing
"""


def is_recorded(name: str, model: Model) -> bool:
    """Whether there is a place for it: one of a configuration written by hand may lack what a row must have."""
    return model.max_tokens is not None and _NAME.fullmatch(name) is not None


async def record(
    connection: Connection,
    models: Mapping[str, Model],
    host: str,
    ports: Collection[int],
    served: Sequence[Served],
    release: str,
) -> int:
    """These are the site's models, each of which `is_recorded`; how many rows changed.

    The host has engines at `ports`, of which some have said what they run; `release` is the one that sees that first.
    """
    await connection.execute(_ALONE)
    changed = 0
    for name, model in models.items():
        metadata = {
            "features": list(model.features),
            "size_gb": model.size_gb,
            "latency_ms": model.latency_ms,
            "latency_target_ms": model.latency_target_ms,
        }
        values = (
            name, model.display_name or name, model.kind, model.owned_by, model.repository, model.revision,
            model.max_tokens, Jsonb({key: value for key, value in metadata.items() if value}),
        )  # fmt: skip
        changed += (await connection.execute(_PUT_MODEL, values)).rowcount
    changed += (await connection.execute(_RETIRE_MODELS, (list(models),))).rowcount
    changed += (await connection.execute(_RETIRE_PORTS, (host, list(ports)))).rowcount
    for one in served:
        what = (one.weights_version, one.engine_version)
        changed += (await connection.execute(_RETIRE_OTHER, (host, one.port, one.model, *what))).rowcount
        changed += (await connection.execute(_ADD, (one.model, host, one.port, *what, release))).rowcount
    return changed
