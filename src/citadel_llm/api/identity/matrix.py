"""Who may do what, as docs/identity.md tells it.

`python -m citadel_llm.api.identity.matrix docs/identity.md` brings the tables of the page to what the code says.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from citadel_llm.api.identity.guard import public
from citadel_llm.api.identity.permissions import BUILT_IN, PER_MODEL, PERMISSIONS
from citadel_llm.api.routes.kinds import ENDPOINTS, PERMISSION

__all__ = ["Endpoint", "application", "endpoints", "replaced", "tables"]

# (method, path, the permissions of which one is needed; none: public)
type Endpoint = tuple[str, str, tuple[str, ...]]

# What FastAPI itself answers, for everybody.
_DOCUMENTATION = frozenset({"/docs", "/openapi.json", "/docs/oauth2-redirect"})


def endpoints(app: FastAPI) -> list[Endpoint]:
    """Everything that the gateway answers. Raises LookupError for a route that does not say who may use it."""
    found: list[Endpoint] = []
    for path, endpoint in ENDPOINTS.items():
        found.append(("POST", path, tuple(sorted(PERMISSION[kind] for kind in endpoint.kinds))))
    for route in _routes(app.routes):
        path, methods = route.path, sorted(set(route.methods or ()) - {"HEAD"})
        if path in _DOCUMENTATION:
            declared: tuple[str, ...] | None = ()
        else:
            declared = _declared(route.dependant) if isinstance(route, APIRoute) else None
        if declared is None:
            raise LookupError(f"{' '.join(methods)} {path} does not say who may use it")
        found += [(method, path, declared) for method in methods]
    return sorted(found, key=lambda entry: (entry[1], entry[0]))


def _routes(routes: Iterable[Any]) -> Iterable[Any]:
    for route in routes:
        if hasattr(route, "path") and hasattr(route, "methods"):
            yield route
        else:
            yield from _routes(getattr(route, "original_router", route).routes)  # an included router, or a mount


def _declared(dependant: Dependant) -> tuple[str, ...] | None:
    for one in dependant.dependencies:
        if one.call is public:
            return ()
        declared: tuple[str, ...] | None = getattr(one.call, "permissions", None) or _declared(one)
        if declared is not None:
            return declared
    return None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def tables(app: FastAPI) -> dict[str, str]:
    """The tables by name, as Markdown."""
    roles = list(BUILT_IN)
    by_role = _table(
        ["permission", "", *(f"`{role}`" for role in roles)],
        [
            [f"`{permission}`" + (" *" if permission in PER_MODEL else ""), text]
            + ["yes" if permission in BUILT_IN[role] else "" for role in roles]
            for permission, text in PERMISSIONS.items()
        ],
    )
    by_endpoint = _table(
        ["endpoint", "needs"],
        [
            [f"`{method} {path}`", " or ".join(f"`{name}`" for name in needed) or "nothing"]
            for method, path, needed in endpoints(app)
        ],
    )
    return {"permissions": by_role, "endpoints": by_endpoint}


def replaced(text: str, app: FastAPI) -> str:
    """A page with its tables as they should be, each between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    for name, table in tables(app).items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    return text


async def application() -> FastAPI:
    """The application, for looking at its routes: nothing of it is started."""
    from citadel_llm.api.gateway import build_fastapi  # noqa: PLC0415 — it imports what imports this package
    from citadel_llm.api.state import GatewayState  # noqa: PLC0415
    from citadel_llm.integration.metrics import Metrics  # noqa: PLC0415
    from citadel_llm.utils.config import parse_config  # noqa: PLC0415
    from citadel_llm.utils.keys import KeyRing  # noqa: PLC0415
    from citadel_llm.utils.logging import LogWriter  # noqa: PLC0415

    models = {"model": {"upstreams": [{"url": "http://127.0.0.1:1"}]}}
    config = parse_config({"auth": {"keys_file": "none"}, "models": models})
    state = GatewayState(
        config, lambda: KeyRing([]), Metrics("1"), LogWriter(sys.stderr.fileno()), instance="1", version="0"
    )
    return build_fastapi(state)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(replaced(page.read_text(), asyncio.run(application())))
