"""PostgreSQL through Pgpool-II: the pool, the migrations and the repositories of schema `llm` live here.

The gateway of this release keeps nothing in the database: keys come from a file that the
deployment writes, usage goes to the access log and the metrics.
"""
