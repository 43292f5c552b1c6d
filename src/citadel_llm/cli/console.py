"""Serve the console's page on a host of its own; what the page asks for is passed on to one gateway."""

from __future__ import annotations

from citadel_llm.console.server import add_arguments

__all__ = ["add_arguments"]
