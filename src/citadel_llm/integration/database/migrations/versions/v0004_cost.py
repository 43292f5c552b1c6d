"""What was used has a cost."""

from pathlib import Path

from citadel_llm.integration.database.migrations import run_sql

revision = "0004"
down_revision = "0003"
_SQL = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    """Forward."""
    run_sql(_SQL / "0004_cost.up.sql")


def downgrade() -> None:
    """Backward."""
    run_sql(_SQL / "0004_cost.down.sql")
