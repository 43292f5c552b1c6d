"""The database that a configuration describes, if it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from citadel_llm.integration.database.target import DatabaseError, load_target
from citadel_llm.utils.config import ConfigError
from citadel_llm.utils.config import Database as Section

if TYPE_CHECKING:
    from citadel_llm.integration.database.pool import Database
    from citadel_llm.integration.metrics.database import DatabaseMetrics

__all__ = ["build_database"]


def build_database(
    section: Section, on_change: Callable[[bool, str], None], metrics: DatabaseMetrics
) -> Database | None:
    """It begins to connect with its `start`. Raises ConfigError where its credentials can't be read."""
    if not section.enabled:
        return None
    from citadel_llm.integration.database.pool import Database, Options  # noqa: PLC0415 — heavy: only where wanted

    try:
        target = load_target(section.credentials_file)
    except DatabaseError as error:
        raise ConfigError(str(error)) from None
    options = Options(section.connections, section.timeout_s, section.retry_s)
    return Database(target, options, on_change=on_change, metrics=metrics)
