"""Files, vector stores, and what is put into them."""

from pathlib import Path

from citadel_llm.integration.database.migrations import run_sql

revision = "0003"
down_revision = "0002"
_SQL = Path(__file__).parents[1] / "sql"


def upgrade() -> None:
    """Forward."""
    run_sql(_SQL / "0003_files.up.sql")


def downgrade() -> None:
    """Backward."""
    run_sql(_SQL / "0003_files.down.sql")
