"""Limits, the identities' version, stored responses, the audit log's chains."""

from pathlib import Path

from citadel_llm.integration.database.migrations import run_sql

revision = "0002"
down_revision = "0001"
_SQL = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    """Forward."""
    run_sql(_SQL / "0002_identity.up.sql")


def downgrade() -> None:
    """Backward."""
    run_sql(_SQL / "0002_identity.down.sql")
