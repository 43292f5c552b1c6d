"""Citadel LLM server: one OpenAI-compatible gateway over a host's vLLM engines.

Kept free of imports: the controller loads parts of this package with nothing but the
standard library at hand.
"""

__version__ = "0.1.0"
