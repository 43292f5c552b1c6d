"""PostgreSQL through Pgpool-II: where it is, the migrations of schema `llm`, and whether the live schema is theirs.

`docs/database.md` says what the tables are for, and how a schema changes without a release falling over.
"""
