"""`citadel vector`: stores seen and searched, collections embedded anew, backed up and brought back.

Run inside the lab: `bin/lab run pytest tests/integration/test_vector_upkeep.py`; it needs the SQL and the vector host.
"""

import asyncio
import json
import os
import shutil
import sys

import openai
import pytest
import pytest_asyncio
from files_site import memory_of
from sessions_site import opened

from engine_embeddings import Embeds
from gateways import spawned_gateway, write_keys
from upstreams import Upstream
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
COUNT = 40


@pytest.fixture(scope="module")
def memory(credentials):
    with memory_of(credentials) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(credentials, memory, tmp_path_factory):
    """A gateway, the official client of its user, her store of COUNT files, and `citadel(...)`."""
    folder = tmp_path_factory.mktemp("gateway")
    write_keys(folder / "keys.json", {"file": "sk-nobodys"})
    with opened(credentials) as site:
        key = site.key("anna", site.user("anna"))
        async with (
            Upstream(Embeds()) as embedding,
            spawned_gateway(
                folder,
                models={"minilm": {"upstreams": [embedding], "kind": "embedding", "max_tokens": 256}},
                **site.settings(folder),
                **memory.settings(folder),
            ) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as anna,
        ):
            await gateway.logged("identities_read")
            texts = [f"item{n} costs {n * 31} crowns" for n in range(COUNT)]
            files = [
                (await anna.files.create(file=(f"{n}.txt", t.encode()), purpose="assistants")).id
                for n, t in enumerate(texts)
            ]
            store = await anna.vector_stores.create(name="prices", file_ids=files)

            async def whole():
                return (await anna.vector_stores.retrieve(store.id)).file_counts.completed == COUNT

            await until(whole, 60, what="the store is whole")

            async def citadel(*words):
                process = await asyncio.create_subprocess_exec(
                    *[sys.executable, "-m", "citadel_llm.cli", "vector", *words],
                    *["--url", gateway.url, "--config", str(folder / "citadel.yaml")],
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CITADEL_API_KEY": key},
                )
                out, error = await process.communicate()
                assert process.returncode == 0, error.decode()
                return out.decode()

            yield gateway, anna, store.id, citadel


async def best(anna, store, n):
    return (await anna.vector_stores.search(store, query=f"item{n}", max_num_results=1)).data[0].filename


async def test_stores_are_seen_and_searched(world):
    _, _, store, citadel = world
    told = await citadel("stores")
    assert store in told
    assert f"{COUNT}/{COUNT}" in told
    assert "7.txt" in await citadel("search", store, "what does item7 cost", "--limit", "1")
    assert json.loads(await citadel("search", store, "item7", "--json"))["data"][0]["filename"] == "7.txt"


async def test_a_collection_is_embedded_anew_beside_the_old_one_and_the_alias_moves(world, memory):
    _, anna, store, citadel = world
    other = f"{memory.collection}-minilm-2"
    memory.make(other)
    before = memory.points(store_id=store)
    told = json.loads(await citadel("reindex", other, "--json"))
    assert told == {"collection": other, "written": COUNT, "removed": 0}
    aliases = {one["alias_name"]: one["collection_name"] for one in memory.ask("GET", "/aliases")["aliases"]}
    assert aliases[memory.collection] == other
    after = memory.points(store_id=store)
    assert {id: payload for id, (payload, _) in after.items()} == {id: payload for id, (payload, _) in before.items()}
    assert await best(anna, store, 9) == "9.txt"
    memory.ask("DELETE", f"/collections/{memory.behind}")
    assert await best(anna, store, 11) == "11.txt"


async def test_a_backup_is_brought_back(world, memory, tmp_path):
    gateway, anna, store, citadel = world
    told = await citadel("backup", str(tmp_path / "backup"))
    assert f"{COUNT} files" in told
    before = memory.points(store_id=store)
    [name] = {
        one["collection_name"]
        for one in memory.ask("GET", "/aliases")["aliases"]
        if one["alias_name"] == memory.collection
    }
    memory.ask("DELETE", f"/collections/{name}")
    for path in (gateway.folder / "files").glob("??"):
        shutil.rmtree(path)
    await citadel("restore", str(tmp_path / "backup"))
    assert memory.points(store_id=store) == before
    assert await best(anna, store, 13) == "13.txt"
    file = (await anna.files.list(limit=1)).data[0]
    assert b"costs" in (await anna.files.content(file.id)).content
