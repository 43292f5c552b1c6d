"""docs/identity.md says who may do what, and says it as it is."""

from pathlib import Path

import pytest
from fastapi import APIRouter

from citadel_llm.api.identity.matrix import application, endpoints, replaced
from citadel_llm.api.identity.permissions import PERMISSIONS
from citadel_llm.api.routes.kinds import ENDPOINTS

PAGE = Path(__file__).resolve().parents[3] / "docs/identity.md"


async def test_the_page_has_the_tables_as_they_are():
    """Mend it with `python -m citadel_llm.api.identity.matrix docs/identity.md`."""
    text = PAGE.read_text()
    assert "<!-- permissions -->" in text
    assert "<!-- endpoints -->" in text
    assert replaced(text, await application()) == text


async def test_every_endpoint_says_who_may_use_it():
    found = endpoints(await application())
    assert len(found) > len(ENDPOINTS)
    assert {name for _, _, needed in found for name in needed} <= set(PERMISSIONS)
    public = {path for _, path, needed in found if not needed}
    assert public == {
        *("/docs", "/docs/oauth2-redirect", "/openapi.json", "/metrics"),
        *("/health", "/health/live", "/health/ready"),
        *("/console", "/console/{name}"),
    }


async def test_an_endpoint_that_does_not_say_it_is_found_out():
    app = await application()
    routes = APIRouter()
    routes.add_api_route("/admin/v1/forgotten", lambda: None)
    app.include_router(routes)
    with pytest.raises(LookupError, match="GET /admin/v1/forgotten does not say who may use it"):
        endpoints(app)
