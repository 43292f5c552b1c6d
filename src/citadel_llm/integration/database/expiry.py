"""Conversations and kept responses that nobody used for long enough: removed a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy

from citadel_llm.integration.database.connection import transaction
from citadel_llm.integration.database.user_data import EXPIRED

__all__ = ["remove_expired"]

LIMIT_S = 60.0  # what is left then waits for the next day: the timer's unit is ended after twice as long


def remove_expired(engine: sqlalchemy.Engine, clock: Callable[[], float] = time.monotonic) -> dict[str, int]:
    """How many of each were removed. Each batch is a transaction, so that nobody waits for more than one."""
    end = clock() + LIMIT_S
    removed = dict.fromkeys(EXPIRED, 0)
    for name, statement in EXPIRED.items():
        while clock() < end:
            with transaction(engine) as connection:
                count = connection.exec_driver_sql(statement).rowcount
            removed[name] += count
            if not count:
                break
    return removed
