"""Models, users, keys, sessions, the audit log, usage, feedback and budgets."""

from pathlib import Path

from citadel_llm.integration.database.migrations import run_sql

revision = "0001"
down_revision = None
_SQL = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    """Forward."""
    run_sql(_SQL / "0001_first.up.sql")


def downgrade() -> None:
    """Backward."""
    run_sql(_SQL / "0001_first.down.sql")
