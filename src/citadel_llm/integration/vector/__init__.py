"""Qdrant behind its gateway: collections, upserts and searches for retrieval live here.

The gateway of this release offers no vector endpoint, so nothing is needed of it yet.
"""
