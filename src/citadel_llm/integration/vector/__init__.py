"""Qdrant behind its gateway: which collections there are, and the client that asks it.

`docs/vector.md` says how it is set up, used and measured.
"""
