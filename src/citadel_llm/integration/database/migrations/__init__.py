"""Revisions of schema `llm`: `versions/` says their order, `sql/` holds what each does and how it is undone."""

from __future__ import annotations

from pathlib import Path

from alembic import op

__all__ = ["run_sql"]


def run_sql(path: Path) -> None:
    """Run a file of statements in the revision's transaction, as it is: no parameter, no placeholder."""
    op.get_bind().exec_driver_sql(path.read_text(), execution_options={"no_parameters": True})
