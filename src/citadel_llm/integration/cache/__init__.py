"""Redis, beside the gateway on its host: answers that are asked for again, and what its instances count together.

Everything here goes on without Redis: what can't be had in time is done without.
"""

from citadel_llm.integration.cache.connection import CacheUnavailable, CommandRefused, Options
from citadel_llm.integration.cache.metrics import CacheMetrics, NoMetrics
from citadel_llm.integration.cache.redis import Credentials, Redis, Script, load_credentials
from citadel_llm.integration.cache.response_cache import Plan, ResponseCache, Stored
from citadel_llm.integration.cache.single_flight import Flight, Flights

__all__ = [
    "CacheMetrics",
    "CacheUnavailable",
    "CommandRefused",
    "Credentials",
    "Flight",
    "Flights",
    "NoMetrics",
    "Options",
    "Plan",
    "Redis",
    "ResponseCache",
    "Script",
    "Stored",
    "load_credentials",
]
