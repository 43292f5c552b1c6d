"""The database knows which models there are and what has served them where, as the engines themselves say it.

Run inside the lab: `bin/lab run pytest tests/integration/test_deployments.py`; it needs the SQL host alone.
"""

import contextlib
import socket

import pytest

from upstreams import Upstream
from waiting import until

pytestmark = pytest.mark.lab
DEPLOYMENTS = """
select model, host, port, weights_version, engine_version, retired_at is null, release <> ''
from llm.deployments order by id
"""
MODELS = """
select name, display_name, kind, owned_by, repository, revision, max_tokens, metadata, retired_at is null
from llm.models order by name
"""
HERE = socket.gethostname()


def entry(engine, **more):
    return {"upstreams": [engine], "max_tokens": 4096, "repository": "somebody/a-model", "revision": "c0ffee", **more}


async def test_what_engines_run_is_written_down_once_and_anew_when_it_is_another(empty_site, tmp_path):
    site = empty_site
    weights = tmp_path / "current"
    weights.symlink_to("generated-1")
    folders = [tmp_path / number for number in "12"]
    async with contextlib.AsyncExitStack() as stack:
        phi3, minilm, unknown = [await stack.enter_async_context(Upstream()) for _ in range(3)]
        phi3.weights = {"phi3": str(weights)}
        minilm.weights = {"minilm": "somebody/minilm"}
        models = {
            "phi3": entry(phi3, display_name="Phi-3", features=["tools"], latency_ms=500),
            "minilm": entry(minilm, kind="embedding", owned_by="sentence-transformers"),
            "bare": [unknown],  # nobody knows its context
        }
        for number, folder in enumerate(folders, 1):
            folder.mkdir()
            gateway = await stack.enter_async_context(site.gateway(folder, models, instance=str(number), ready=False))
        first = ("phi3", HERE, phi3.port, "generated-1", "0.32.0")
        other = ("minilm", HERE, minilm.port, "somebody/minilm", "0.32.0")
        await until(lambda: {row[:5] for row in site.sql(DEPLOYMENTS)} == {first, other}, what="both are written down")
        assert site.sql(MODELS) == [
            ("minilm", "minilm", "embedding", "sentence-transformers", "somebody/a-model", "c0ffee", 4096, {}, True),
            (
                *("phi3", "Phi-3", "generate", "citadel", "somebody/a-model", "c0ffee", 4096),
                *({"features": ["tools"], "latency_ms": 500}, True),
            ),
        ]

        await phi3.shut()
        await gateway.seen(state="down")
        weights.unlink()
        weights.symlink_to("generated-2")
        phi3.version = "0.33.0"
        await phi3.open()
        new = ("phi3", HERE, phi3.port, "generated-2", "0.33.0", True, True)
        await until(lambda: new in site.sql(DEPLOYMENTS), what="the new version is written down")
        rows = site.sql(DEPLOYMENTS)
    assert sorted(rows) == sorted([(*first, False, True), (*other, True, True), new])
    assert {row[0]: row[-1] for row in site.sql(MODELS)} == {"minilm": True, "phi3": True}


async def test_what_is_served_no_more_is_retired_and_comes_back(empty_site, tmp_path):
    site = empty_site
    async with Upstream() as phi3, Upstream() as hermes:
        hermes.weights = {"hermes": "somebody/hermes"}
        both = {"phi3": entry(phi3), "hermes": entry(hermes)}

        def live():
            return [row[0] for row in site.sql(MODELS) if row[-1]], [row[0] for row in site.sql(DEPLOYMENTS) if row[5]]

        for models in (both, {"phi3": entry(phi3)}, both):
            async with site.gateway(tmp_path, models, ready=False):
                wanted = sorted(models)
                await until(
                    lambda wanted=wanted: tuple(map(sorted, live())) == (wanted, wanted), what=f"{wanted} alone"
                )
    assert len(site.sql(DEPLOYMENTS)) == 3


async def test_an_engine_that_does_not_say_what_it_runs_is_served_all_the_same_and_not_written_down(
    empty_site, tmp_path
):
    site = empty_site
    async with Upstream() as phi3:
        phi3.version = None
        async with site.gateway(tmp_path, {"phi3": entry(phi3)}, ready=False) as gateway:
            await until(lambda: len(site.sql(MODELS)) == 1, what="the model is written down")
            assert (await gateway.health())["state"] == "up"
    assert site.sql(DEPLOYMENTS) == []
