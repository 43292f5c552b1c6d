"""Alembic's environment: the transaction is the caller's, who holds the lock (`migrate.py`)."""

from alembic import context

from citadel_llm.integration.database.target import SCHEMA

context.configure(connection=context.config.attributes["connection"], version_table_schema=SCHEMA)
with context.begin_transaction():
    context.run_migrations()
