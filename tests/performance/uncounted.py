"""The gateway, counting nothing: `python tests/performance/uncounted.py gateway …`, for `bin/bench --without metrics`.

What a request adds to metrics is left out here, by replacing it: a switch in the product would itself cost something.
"""

from __future__ import annotations

import sys
from types import FunctionType

from citadel_llm.cli import main
from citadel_llm.integration.metrics import Metrics
from citadel_llm.integration.metrics.audit import AuditMetrics
from citadel_llm.integration.metrics.database import DatabaseMetrics

__all__ = ["uncount"]

_STAY = {"exposition", "close"}


def uncount() -> None:
    """Let every method that counts do nothing."""
    for counters in (Metrics, AuditMetrics, DatabaseMetrics):
        for name, found in list(vars(counters).items()):
            if isinstance(found, FunctionType) and not name.startswith("_") and name not in _STAY:
                setattr(counters, name, _nothing)


def _nothing(*_: object, **__: object) -> None:
    pass


if __name__ == "__main__":
    uncount()
    sys.exit(main())
